//! Where bytes from outside come from.
pub struct Fetched {
    pub path: std::path::PathBuf,
    pub sha256: String,
}
pub fn local_path(location: &str) -> Option<std::path::PathBuf> {
    if let Some(path) = location.strip_prefix("file:") {
        return Some(path.into());
    }
    (!["https:", "http:", "pypi:", "hf:"]
        .iter()
        .any(|s| location.starts_with(s)))
    .then(|| location.into())
}
pub fn fetch_into(
    location: &str,
    _sha256: Option<&str>,
    _cache: &std::path::Path,
    _progress: &mut dyn FnMut(u64, u64) -> bool,
) -> std::io::Result<Fetched> {
    Err(std::io::Error::other(location.to_owned()))
}
