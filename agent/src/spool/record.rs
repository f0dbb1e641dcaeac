//! Single facts that must survive a kill, one small file each: written completely, or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// A fact with a file of its own.
pub trait Record: Serialize + DeserializeOwned {
    /// Name of the file in the spool's directory.
    const NAME: &'static str;
}

/// The fact, if it was stored.
///
/// # Errors
/// When the file cannot be read, or is not what [`store`] wrote.
pub fn load<R: Record>(directory: &Path) -> Result<Option<R>, Error> {
    let bytes = match fs::read(directory.join(R::NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read a record")(error)),
    };
    let record = postcard::from_bytes(&bytes).map_err(|_| Error::Damaged(R::NAME))?;
    Ok(Some(record))
}

/// Stores the fact so that it survives even a crash of the node: file and directory are synced before this returns.
pub fn store<R: Record>(directory: &Path, record: &R) -> Result<(), Error> {
    let bytes = postcard::to_stdvec(record).map_err(|_| Error::Damaged(R::NAME))?;
    let fresh = directory.join(format!("{}.new", R::NAME));
    File::create(&fresh)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()?;
            crate::crash::point(R::NAME, "written");
            fs::rename(&fresh, directory.join(R::NAME))?;
            File::open(directory)?.sync_all()
        })
        .map_err(Error::io("write a record"))?;
    crate::crash::point(R::NAME, "stored");
    Ok(())
}
