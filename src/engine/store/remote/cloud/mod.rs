//! A bucket of a cloud, by the crate `object_store`.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path as FilePath;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{self, Either};
use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::{Path, PathPart};
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
///
/// Parts of an upload that nobody goes on with stay there and are paid for until a rule of the bucket ends them
/// (`AbortIncompleteMultipartUpload`): nothing that is asked for here lists them.
pub(super) struct Cloud {
    /// For what is small, and answered soon.
    store: Arc<dyn ObjectStore>,
    /// For pieces of what is large.
    large: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    prefix: Path,
    runtime: Runtime,
    /// Ends every wait for an answer.
    stop: Arc<AtomicBool>,
}

/// How often a request is repeated, and for how long at most.
const RETRIES: usize = 4;
const PATIENCE: Duration = Duration::from_mins(1);
const TO_CONNECT: Duration = Duration::from_secs(5);
/// How long a request may take in all: one for little, and one for a piece of 16 MiB beside others on a slow line.
const TO_ANSWER: Duration = Duration::from_mins(1);
const TO_TRANSFER: Duration = Duration::from_mins(10);
/// Bytes from which on something is large.
const LARGE: u64 = 1 << 20;

/// Opens a bucket of one cloud: settings of the environment, and over them those of the file.
macro_rules! open {
    ($builder:ty, $settings:expr, $url:expr, $time:expr) => {{
        let client = ClientOptions::new()
            .with_timeout($time)
            .with_connect_timeout(TO_CONNECT);
        let mut builder = <$builder>::new()
            .with_url($url.as_str())
            .with_client_options(client);
        for (name, value) in variables() {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        for (name, value) in &$settings.options {
            let key = name
                .to_ascii_lowercase()
                .parse()
                .map_err(|_| unknown_option(name))?;
            builder = builder.with_config(key, value.clone());
        }
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: PATIENCE,
            ..RetryConfig::default()
        };
        let opened = builder.with_retry(retry).build();
        Arc::new(opened.map_err(|error| unusable($settings, &error))?)
    }};
}

/// Opens a bucket of one cloud for what is small, for what is large, and for uploads in parts.
macro_rules! open_all {
    ($builder:ty, $settings:expr, $url:expr) => {{
        let small = open!($builder, $settings, $url, TO_ANSWER);
        let large = open!($builder, $settings, $url, TO_TRANSFER);
        let parts: Arc<dyn MultipartStore> = Arc::clone(&large) as _;
        (
            small as Arc<dyn ObjectStore>,
            large as Arc<dyn ObjectStore>,
            parts,
        )
    }};
}

/// The variables that are meant for a cloud.
fn variables() -> Vec<(String, String)> {
    let all = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let is_meant = VARIABLES.iter().any(|start| name.starts_with(start));
        // An empty one is none. What is no text is refused with what has signs that belong in no address and no key.
        let value = value.to_string_lossy().into_owned();
        (is_meant && !value.is_empty()).then_some((name, value))
    });
    all.collect()
}

/// Refuses settings that the crate would panic at, or fail at without a word of why.
fn check_variables(settings: &RemoteSettings) -> Result<(), StageError> {
    let of_file = settings.options.iter();
    let of_file = of_file.map(|(name, value)| (name.clone(), value.clone()));
    let all: Vec<(String, String)> = variables().into_iter().chain(of_file).collect();
    let of_http = |(name, _): &&(String, String)| name.to_ascii_lowercase().ends_with("allow_http");
    let is_true = |value: &str| {
        ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str())
    };
    let allows_http = all
        .iter()
        .rfind(of_http)
        .is_some_and(|(_, value)| is_true(value));
    for (name, value) in &all {
        if value.contains(|sign: char| sign.is_control() || sign == char::REPLACEMENT_CHARACTER) {
            return Err(StageError::new(format!(
                "`{name}` has a line break or another sign in it that cannot be meant"
            )));
        }
        // Some say by yes and no which kind of server it is.
        let is_address = name.to_ascii_lowercase().contains("endpoint")
            && !is_true(value)
            && !["0", "false", "off", "no", "n"].contains(&value.to_ascii_lowercase().as_str());
        if is_address {
            check_server(name, value, allows_http)?;
        }
    }
    Ok(())
}

/// Refuses what is no address of a server for everybody who reads it.
fn check_server(name: &str, value: &str, allows_http: bool) -> Result<(), StageError> {
    let is_plain = value
        .chars()
        .all(|sign| sign.is_ascii_alphanumeric() || "-._~:/%[]".contains(sign));
    let parsed = url::Url::parse(value).ok().filter(url::Url::has_host);
    let scheme = ["https", "http"].into_iter().find(|scheme| {
        let rest = value.strip_prefix(scheme);
        rest.is_some_and(|rest| rest.starts_with("://"))
    });
    match scheme {
        Some("https") if is_plain && parsed.is_some() => Ok(()),
        Some("http") if is_plain && parsed.is_some() => {
            if allows_http {
                return Ok(());
            }
            let what = format!("`{name}` is an address without encryption");
            Err(StageError::new(what)
                .hint("AWS_ALLOW_HTTP=true, or `allow_http: true` beside it, allows that"))
        }
        _ => Err(StageError::new(format!(
            "`{name}` is no address of a server: expected https://host:port, without a user, blanks or a query"
        ))),
    }
}

fn unknown_option(name: &str) -> StageError {
    StageError::new(format!(
        "option `{name}` of the shared store: there is none of that name"
    ))
    .hint("`endpoint`, `region` and `allow_http` are some; the documentation of the crate object_store has all")
}

fn unusable(settings: &RemoteSettings, error: &Error) -> StageError {
    let said = settings.mask().text(&error.to_string());
    StageError::new(format!("shared store `{}`: {said}", settings.address))
}

impl Cloud {
    pub(super) fn open(
        settings: &RemoteSettings,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, StageError> {
        check_variables(settings)?;
        let unknown = |what: String| {
            StageError::new(format!("shared store `{}`: {what}", settings.address)).hint(
                "expected s3://bucket/path, gs://bucket/path, az://container/path or file:///path",
            )
        };
        let url = url::Url::parse(&settings.address).map_err(|error| unknown(error.to_string()))?;
        let (scheme, prefix) =
            ObjectStoreScheme::parse(&url).map_err(|error| unknown(error.to_string()))?;
        let (store, large, parts) = match scheme {
            ObjectStoreScheme::AmazonS3 => open_all!(AmazonS3Builder, settings, url),
            ObjectStoreScheme::GoogleCloudStorage => {
                open_all!(GoogleCloudStorageBuilder, settings, url)
            }
            ObjectStoreScheme::MicrosoftAzure => open_all!(MicrosoftAzureBuilder, settings, url),
            _ => return Err(unknown("it is in no cloud that is known here".to_owned())),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        Ok(Self {
            store,
            large,
            parts,
            prefix,
            runtime,
            stop,
        })
    }

    /// Waits for an answer, unless it is time to stop.
    fn ask<T>(
        &self,
        answer: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        let stopped = async {
            while !self.stop.load(Ordering::Relaxed) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(BucketError::Here("stopped".to_owned()))
        };
        // The crate and those below it expect what servers and variables need not give.
        let answer = std::panic::AssertUnwindSafe(answer).catch_unwind();
        let answer = answer.map(|answer| {
            answer.unwrap_or_else(|_| Err(BucketError::Failed("its client panicked".to_owned())))
        });
        self.runtime.block_on(async {
            match future::select(pin!(answer), pin!(stopped)).await {
                Either::Left((answer, _)) => answer,
                Either::Right((stopped, _)) => stopped,
            }
        })
    }

    fn path(&self, key: &str) -> Path {
        // Those of the prefix are written as names of the bucket already.
        let names = key.split('/').map(PathPart::from);
        self.prefix.parts().chain(names).collect()
    }

    /// The client for so many bytes.
    fn client(&self, bytes: u64) -> &dyn ObjectStore {
        if bytes > LARGE {
            &*self.large
        } else {
            &*self.store
        }
    }
}

/// Answers to a name of which there is nothing, that are about more than the name.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"];

fn failed(error: Error, key: &str) -> BucketError {
    let said = error.to_string();
    match error {
        Error::NotFound { .. } if NO_BUCKET.iter().any(|no| said.contains(no)) => {
            BucketError::Failed(format!("there is no such bucket: {said}"))
        }
        Error::NotFound { .. } => BucketError::Absent(key.to_owned()),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => BucketError::Denied(said),
        Error::NotImplemented { .. } | Error::NotSupported { .. } => BucketError::Unsupported(said),
        _ if said.contains("501 Not Implemented") => BucketError::Unsupported(said),
        _ => BucketError::Failed(said),
    }
}

/// What is written needs no name that is there already.
fn not_written(error: Error, key: &str) -> BucketError {
    match failed(error, key) {
        BucketError::Absent(_) => BucketError::Failed("there is no such bucket".to_owned()),
        other => other,
    }
}

impl Bucket for Cloud {
    fn read(
        &self,
        key: &str,
        part: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Vec<u8>, BucketError> {
        let is_part = part.is_some();
        let failed = |error: Error| match failed(error, key) {
            // It begins behind the end.
            BucketError::Failed(said) if is_part && said.contains("416 ") => {
                BucketError::TooShort(key.to_owned())
            }
            other => other,
        };
        self.ask(async {
            let options = GetOptions {
                range: part.map(GetRange::Bounded),
                ..GetOptions::default()
            };
            let got = self.client(limit).get_opts(&self.path(key), options).await;
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
        let path = self.path(key);
        self.ask(async {
            match self.store.head(&path).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed(error, key)),
            }
        })
    }

    fn write(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let path = self.path(key);
        let put = self.client(bytes.len() as u64);
        let put = put.put_opts(&path, bytes.into(), PutMode::Overwrite.into());
        self.ask(async { put.await.map_err(|error| not_written(error, key)) })?;
        Ok(())
    }

    fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, BucketError> {
        let (path, mode) = (self.path(key), PutMode::Create.into());
        let put = self.store.put_opts(&path, bytes.into(), mode);
        self.ask(async {
            match put.await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                Err(error) => Err(not_written(error, key)),
            }
        })
    }

    fn upload(&self, key: &str, upload: &mut Upload) -> Result<(), BucketError> {
        let path = self.path(key);
        if let Some(mut begun) = Begun::read(upload) {
            match self.send_parts(&path, key, &mut begun, upload) {
                Err(NotSent::For(error)) if begun.has_chances() => {
                    begun.note(upload.notes);
                    return Err(error);
                }
                Err(NotSent::For(error @ (BucketError::Here(_) | BucketError::Denied(_)))) => {
                    return Err(error);
                }
                // It is not known there any more, or not as it was noted: not every server says so.
                Err(_) => {
                    let _ = std::fs::remove_file(upload.notes);
                    let abort = self.parts.abort_multipart(&path, &begun.upload);
                    let _ = self.ask(async { abort.await.map_err(|error| failed(error, key)) });
                }
                Ok(()) => return Ok(()),
            }
        }
        let mut begun = Begun::new(self, &path, key, upload)?;
        match self.send_parts(&path, key, &mut begun, upload) {
            Err(NotSent::Unknown) => Err(BucketError::Failed(format!(
                "an upload of `{key}` was begun, and is not known there"
            ))),
            Err(NotSent::For(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    fn list(
        &self,
        folder: &str,
        each: &mut dyn FnMut(Entry) -> Result<(), BucketError>,
    ) -> Result<(), BucketError> {
        let folder = self.path(folder);
        self.ask(async {
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
                })?;
            }
            Ok(())
        })
    }

    fn remove(&self, keys: Vec<String>) -> Result<(), BucketError> {
        let paths: Vec<_> = keys.iter().map(|key| Ok(self.path(key))).collect();
        self.ask(async {
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
    /// How often it was gone on with in vain, no part being taken.
    in_vain: u32,
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
        let id = cloud.parts.create_multipart(path);
        let id = async { id.await.map_err(|error| not_written(error, key)) };
        Ok(Self {
            upload: cloud.ask(id)?,
            part,
            parts: vec![None; usize::try_from(upload.size.div_ceil(part)).unwrap_or(usize::MAX)],
            in_vain: 0,
        })
    }

    /// Counts a try in vain; says whether it is worth another.
    fn has_chances(&mut self) -> bool {
        self.in_vain += 1;
        self.in_vain < 3
    }

    fn note(&self, notes: &FilePath) {
        // Without a note the next try begins at the beginning.
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = crate::engine::store::publish::publish_unsynced(notes, &text);
        }
    }
}

/// Why an upload in parts came to nothing.
enum NotSent {
    /// It, or one of its parts, is not known there.
    Unknown,
    For(BucketError),
}

impl<E: Into<BucketError>> From<E> for NotSent {
    fn from(error: E) -> Self {
        match error.into() {
            BucketError::Absent(_) => Self::Unknown,
            error => Self::For(error),
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
    ) -> Result<(), NotSent> {
        let failed = |error| failed(error, key);
        let file = fs_err::File::open(upload.file)?;
        let mut open: Vec<usize> = (0..begun.parts.len())
            .filter(|at| begun.parts[*at].is_none())
            .rev()
            .collect();
        let id = begun.upload.clone();
        self.ask(async {
            let mut under_way = FuturesUnordered::new();
            let mut broken = None;
            loop {
                while broken.is_none()
                    && under_way.len() < PARTS_AT_ONCE
                    && let Some(at) = open.pop()
                {
                    let start = at as u64 * begun.part;
                    let length = begun.part.min(upload.size - start);
                    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
                    file.file().read_exact_at(&mut bytes, start)?;
                    let put = self.parts.put_part(path, &id, at, bytes.into());
                    under_way.push(async move { (at, put.await) });
                }
                let Some((at, part)) = under_way.next().await else {
                    break;
                };
                // Those that are under way beside one that fails are noted still.
                let part = match part {
                    Ok(part) => part,
                    Err(error) => {
                        broken.get_or_insert(failed(error));
                        continue;
                    }
                };
                begun.parts[at] = Some(part.content_id);
                begun.in_vain = 0;
                begun.note(upload.notes);
                let done = begun.parts.iter().flatten().count() as u64 * begun.part;
                (upload.tell)(done.min(upload.size))?;
            }
            broken.map_or(Ok(()), Err)
        })?;
        let parts = begun.parts.iter().flatten();
        let parts = parts.map(|content_id| PartId {
            content_id: content_id.clone(),
        });
        let parts = parts.collect();
        let done = self.parts.complete_multipart(path, &id, parts);
        let done = self.ask(async { done.await.map_err(failed) });
        // The answer may have been lost of one that was completed.
        if let Err(error) = done
            && self.size(key)? != Some(upload.size)
        {
            return Err(match error {
                BucketError::Failed(said) if said.contains("InvalidPart") => NotSent::Unknown,
                error => error.into(),
            });
        }
        let _ = std::fs::remove_file(upload.notes);
        Ok(())
    }
}
