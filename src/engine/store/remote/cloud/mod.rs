//! A bucket of a cloud, by the crate `object_store`.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, ObjectStoreScheme,
    PutMode, RetryConfig,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::bucket::{Bucket, BucketError, Entry, Upload};
use super::settings::{RemoteSettings, VARIABLES};
use crate::engine::stage::StageError;

/// A bucket, and what is below a path of it.
pub(super) struct Cloud {
    store: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    prefix: Path,
    runtime: Runtime,
}

/// Tries of a request, of which each may take so long that a whole piece has time on a slow line.
const RETRIES: usize = 4;
const SECONDS_OF_TRIES: u64 = 60;
const SECONDS_OF_REQUEST: u64 = 120;
const SECONDS_TO_CONNECT: u64 = 5;

/// Makes a bucket of one cloud: settings of the environment, and over them those of the file.
macro_rules! open {
    ($builder:ty, $settings:expr, $url:expr) => {{
        let mut builder = <$builder>::new()
            .with_url($url.as_str())
            .with_client_options(client_options());
        for (name, value) in std::env::vars() {
            let is_meant = VARIABLES.iter().any(|start| name.starts_with(start));
            if is_meant && let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        for (name, value) in &$settings.options {
            let key = name.to_ascii_lowercase().parse().map_err(|_| {
                StageError::new(format!("option `{name}` of the shared store: there is none of that name"))
                    .hint("`endpoint`, `region` and `allow_http` are some; the documentation of object_store has all")
            })?;
            builder = builder.with_config(key, value.clone());
        }
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: Duration::from_secs(SECONDS_OF_TRIES),
            ..RetryConfig::default()
        };
        let store = Arc::new(builder.with_retry(retry).build().map_err(|error| unusable($settings, &error))?);
        (Arc::clone(&store) as Arc<dyn ObjectStore>, store as Arc<dyn MultipartStore>)
    }};
}

/// Settings that those of the environment and of the file go over.
fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout(Duration::from_secs(SECONDS_OF_REQUEST))
        .with_connect_timeout(Duration::from_secs(SECONDS_TO_CONNECT))
}

fn unusable(settings: &RemoteSettings, error: &Error) -> StageError {
    let said = settings.mask().text(&error.to_string());
    StageError::new(format!("shared store `{}`: {said}", settings.address))
}

impl Cloud {
    pub(super) fn open(settings: &RemoteSettings) -> Result<Self, StageError> {
        let unknown = |what: String| {
            StageError::new(format!("shared store `{}`: {what}", settings.address)).hint(
                "expected s3://bucket/path, gs://bucket/path, az://container/path or file:///path",
            )
        };
        let url = url::Url::parse(&settings.address).map_err(|error| unknown(error.to_string()))?;
        let (scheme, prefix) =
            ObjectStoreScheme::parse(&url).map_err(|error| unknown(error.to_string()))?;
        let (store, parts) = match scheme {
            ObjectStoreScheme::AmazonS3 => open!(AmazonS3Builder, settings, url),
            ObjectStoreScheme::GoogleCloudStorage => {
                open!(GoogleCloudStorageBuilder, settings, url)
            }
            ObjectStoreScheme::MicrosoftAzure => open!(MicrosoftAzureBuilder, settings, url),
            _ => return Err(unknown("it is in no cloud that is known here".to_owned())),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        Ok(Self {
            store,
            parts,
            prefix,
            runtime,
        })
    }

    fn path(&self, key: &str) -> Path {
        let parts = self.prefix.parts().map(|part| part.as_ref().to_owned());
        Path::from_iter(parts.chain(key.split('/').map(str::to_owned)))
    }
}

fn failed(error: Error, key: &str) -> BucketError {
    match error {
        Error::NotFound { .. } => BucketError::Absent(key.to_owned()),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            BucketError::Denied(error.to_string())
        }
        other => BucketError::Failed(other.to_string()),
    }
}

impl Bucket for Cloud {
    fn read(
        &self,
        key: &str,
        part: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Vec<u8>, BucketError> {
        let failed = |error| failed(error, key);
        self.runtime.block_on(async {
            let options = GetOptions {
                range: part.map(GetRange::Bounded),
                ..GetOptions::default()
            };
            let got = self.store.get_opts(&self.path(key), options).await;
            let mut stream = got.map_err(failed)?.into_stream();
            let mut bytes = Vec::new();
            while let Some(more) = stream.try_next().await.map_err(failed)? {
                if (bytes.len() + more.len()) as u64 > limit {
                    return Err(BucketError::TooLong(key.to_owned()));
                }
                bytes.extend_from_slice(&more);
            }
            Ok(bytes)
        })
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BucketError> {
        match self.runtime.block_on(self.store.head(&self.path(key))) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error, key)),
        }
    }

    fn write(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let path = self.path(key);
        let put = self.store.put(&path, bytes.into());
        let put = self.runtime.block_on(put);
        put.map(|_| ()).map_err(|error| failed(error, key))
    }

    fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, BucketError> {
        let (path, mode) = (self.path(key), PutMode::Create.into());
        let put = self.store.put_opts(&path, bytes.into(), mode);
        match self.runtime.block_on(put) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failed(error, key)),
        }
    }

    fn upload(&self, key: &str, upload: &mut Upload) -> Result<(), BucketError> {
        let path = self.path(key);
        let mut begun = Begun::read(upload);
        loop {
            let is_old = begun.is_some();
            let mut this = match begun.take() {
                Some(begun) => begun,
                None => Begun::new(self, &path, key, upload)?,
            };
            match self.send_parts(&path, key, &mut this, upload) {
                // What was begun is forgotten there after some days.
                Err(BucketError::Absent(_) | BucketError::Failed(_)) if is_old => {
                    let _ = std::fs::remove_file(upload.notes);
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    let _ = std::fs::remove_file(upload.notes);
                    return Ok(());
                }
            }
        }
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Entry)) -> Result<(), BucketError> {
        let folder = self.path(folder);
        self.runtime.block_on(async {
            let mut entries = self.store.list(Some(&folder));
            let failed = |error| failed(error, folder.as_ref());
            while let Some(meta) = entries.try_next().await.map_err(failed)? {
                let below = meta.location.prefix_match(&self.prefix);
                let Some(below) = below else { continue };
                let parts: Vec<String> = below.map(|part| part.as_ref().to_owned()).collect();
                each(Entry {
                    key: parts.join("/"),
                    size: meta.size,
                    modified: meta.last_modified.into(),
                });
            }
            Ok(())
        })
    }

    fn remove(&self, keys: Vec<String>) -> Result<(), BucketError> {
        let paths: Vec<_> = keys.iter().map(|key| Ok(self.path(key))).collect();
        self.runtime.block_on(async {
            let paths = futures_util::stream::iter(paths).boxed();
            let mut removed = self.store.delete_stream(paths);
            while let Some(one) = removed.next().await {
                match one {
                    Ok(_) | Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(failed(error, "what is to be removed")),
                }
            }
            Ok(())
        })
    }
}

/// An upload in parts, as far as it is.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    /// What the server calls it.
    upload: String,
    /// Bytes of a part.
    part: u64,
    /// What the server calls the parts that are there, by position.
    parts: Vec<Option<String>>,
}

/// Parts at a time; each is in memory meanwhile.
const PARTS_AT_ONCE: usize = 4;

impl Begun {
    /// Reads what is noted of an earlier try.
    fn read(upload: &Upload) -> Option<Self> {
        let noted = std::fs::read(upload.notes).ok()?;
        let begun: Self = serde_json::from_slice(&noted).ok()?;
        (begun.part > 0 && begun.parts.len() as u64 == upload.size.div_ceil(begun.part))
            .then_some(begun)
    }

    fn new(cloud: &Cloud, path: &Path, key: &str, upload: &Upload) -> Result<Self, BucketError> {
        /// Of an upload, S3 takes ten thousand.
        const MOST_PARTS: u64 = 9_000;
        const SMALLEST: u64 = 8 << 20;
        let part = SMALLEST.max(upload.size.div_ceil(MOST_PARTS));
        let id = cloud.runtime.block_on(cloud.parts.create_multipart(path));
        Ok(Self {
            upload: id.map_err(|error| failed(error, key))?,
            part,
            parts: vec![None; usize::try_from(upload.size.div_ceil(part)).unwrap_or(usize::MAX)],
        })
    }

    fn note(&self, notes: &FilePath) {
        // Without a note the next try begins at the beginning.
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = crate::engine::store::publish::publish_unsynced(notes, &text);
        }
    }
}

impl Cloud {
    fn send_parts(
        &self,
        path: &Path,
        key: &str,
        begun: &mut Begun,
        upload: &mut Upload,
    ) -> Result<(), BucketError> {
        let failed = |error| failed(error, key);
        let file = fs_err::File::open(upload.file)?;
        let mut open: Vec<usize> = (0..begun.parts.len())
            .filter(|at| begun.parts[*at].is_none())
            .rev()
            .collect();
        let id = begun.upload.clone();
        self.runtime.block_on(async {
            let mut under_way = FuturesUnordered::new();
            loop {
                while under_way.len() < PARTS_AT_ONCE
                    && let Some(at) = open.pop()
                {
                    let start = at as u64 * begun.part;
                    let length = begun.part.min(upload.size - start);
                    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
                    std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut bytes, start)?;
                    let put = self.parts.put_part(path, &id, at, bytes.into());
                    under_way.push(async move { (at, put.await) });
                }
                let Some((at, part)) = under_way.next().await else {
                    break;
                };
                begun.parts[at] = Some(part.map_err(failed)?.content_id);
                begun.note(upload.notes);
                let done = begun.parts.iter().flatten().count() as u64 * begun.part;
                (upload.tell)(done.min(upload.size))?;
            }
            let parts = begun.parts.iter().flatten();
            let parts = parts.map(|content_id| PartId {
                content_id: content_id.clone(),
            });
            let done = self.parts.complete_multipart(path, &id, parts.collect());
            done.await.map_err(failed)?;
            Ok(())
        })
    }
}
