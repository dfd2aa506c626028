//! A folder of checkpoints.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::name::{Name, TEMPORARY};
use super::write::sync_dir;
use super::{Checkpoint, Skipped, TrainState};
use crate::files::io;

/// Saves checkpoints into a folder, one subfolder each, and finds them again.
///
/// A subfolder is `step-00001234`. A save that does not go forward (the same step again, or an earlier one after a run
/// went back) is `step-00001234.1`, and so are the later ones; *newest* always means saved last, whatever the steps.
///
/// Processes that save into the same folder take turns.
#[derive(Debug, Clone)]
pub struct Checkpointer {
    dir: PathBuf,
    keep: usize,
    keep_every: u64,
}

/// A checkpoint in the list of a folder; not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Steps taken.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    name: Name,
}

impl Entry {
    pub(super) fn name(&self) -> Name {
        self.name
    }
}

/// The newest intact checkpoint.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Newer ones that cannot be used, newest first, with the reasons.
    pub skipped: Vec<Skipped>,
}

impl Checkpointer {
    /// Checkpoints in the folder `dir`, which the first save creates. All are kept unless [`keep`](Self::keep) says
    /// otherwise.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), keep: usize::MAX, keep_every: 0 }
    }

    /// Keeps the newest `n` checkpoints: each save deletes what is older, once it is complete itself. At least one is
    /// kept.
    #[must_use]
    pub fn keep(mut self, n: usize) -> Self {
        self.keep = n.max(1);
        self
    }

    /// Also keeps every checkpoint whose step is a multiple of `steps`. 0, the default: none.
    #[must_use]
    pub fn keep_every(mut self, steps: u64) -> Self {
        self.keep_every = steps;
        self
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Saves a checkpoint and returns its folder.
    ///
    /// It is written beside, flushed to the disk, and renamed: a process that is killed at any moment, or a machine that
    /// loses power, leaves either the whole checkpoint or none. What a killed process left behind is deleted here.
    ///
    /// Memory: 16 KiB to convert elements and a write buffer; a tensor on a GPU or with strides is copied to the host
    /// while it is written.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the file: no space, no permission, a read-only disk. The checkpoints there were are intact
    /// then. An error that names an *older* checkpoint says that it could not be deleted; the new one is saved then.
    pub fn save(&self, state: &TrainState) -> Result<PathBuf> {
        let _lock = self.prepare()?;
        let newest = self.list()?.pop().map(|entry| entry.name);
        let name = Name::after(newest, state.step()).to_string();
        let (temporary, path) = (self.dir.join(format!("{TEMPORARY}{name}")), self.dir.join(name));
        fs::create_dir(&temporary).map_err(io(&temporary))?;
        let written = state.write(&temporary).and_then(|()| self.publish(&temporary, &path));
        if let Err(error) = written {
            // Only tidies up: the next save would do it too.
            fs::remove_dir_all(&temporary).ok();
            return Err(error);
        }
        self.remove_old()?;
        Ok(path)
    }

    /// All checkpoints, oldest first, by name only. Empty if the folder does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the folder.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries: Vec<_> = self
            .children()?
            .into_iter()
            .filter_map(|(text, path)| {
                let name = Name::parse(&text).filter(|_| path.is_dir())?;
                Some(Entry { step: name.step, path, name })
            })
            .collect();
        entries.sort_by_key(|entry| entry.name);
        Ok(entries)
    }

    /// The newest checkpoint, by name only.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the folder.
    pub fn latest(&self) -> Result<Option<Entry>> {
        Ok(self.list()?.pop())
    }

    /// Loads the newest checkpoint that is intact. `None` if there are no checkpoints at all.
    ///
    /// # Errors
    ///
    /// [`Error::NoIntactCheckpoint`], with the reason for each, if there are some but all are damaged; [`Error::Io`](crate::files::Error::Io) if
    /// the folder cannot be read.
    pub fn latest_valid(&self) -> Result<Option<Found>> {
        let mut skipped = Vec::new();
        for Entry { path, .. } in self.list()?.into_iter().rev() {
            match Checkpoint::load(&path) {
                Ok(checkpoint) => return Ok(Some(Found { checkpoint, skipped })),
                Err(error) => skipped.push(Skipped { path, error: Box::new(error) }),
            }
        }
        match skipped.is_empty() {
            true => Ok(None),
            false => Err(Error::NoIntactCheckpoint { dir: self.dir.clone(), skipped }),
        }
    }

    /// Makes the folder ready for a save: it is there, locked, and without what killed processes left behind.
    pub(super) fn prepare(&self) -> Result<File> {
        self.create_dir()?;
        let lock = self.lock()?;
        for path in self.leftovers()? {
            // Litter must not keep a run from saving; if it is in the way, creating the folder says so.
            fs::remove_dir_all(path).ok();
        }
        Ok(lock)
    }

    /// Makes a checkpoint of a folder that is complete.
    pub(super) fn publish(&self, temporary: &Path, path: &Path) -> Result<()> {
        fs::rename(temporary, path).map_err(io(path))?;
        sync_dir(&self.dir)
    }

    fn create_dir(&self) -> Result<()> {
        if self.dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).map_err(io(&self.dir))?;
        match self.dir.parent() {
            Some(parent) if parent != Path::new("") => sync_dir(parent),
            _ => sync_dir(Path::new(".")),
        }
    }

    /// Waits until no other process saves here. The lock ends with the file, also when the process is killed.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
        match file.lock() {
            // Some network file systems have no locks. One process at a time is then up to the user.
            Err(error) if error.kind() != ErrorKind::Unsupported => Err(io(&path)(error).into()),
            _ => Ok(file),
        }
    }

    /// What killed processes left behind. Under the lock nobody else is at work.
    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let children = self.children()?.into_iter();
        Ok(children.filter_map(|(name, path)| name.starts_with(TEMPORARY).then_some(path)).collect())
    }

    pub(super) fn remove_old(&self) -> Result<()> {
        let entries = self.list()?;
        let newest = entries.len().saturating_sub(self.keep);
        for (i, entry) in entries.iter().enumerate().take(newest) {
            // Of checkpoints of the same step the last one counts.
            let superseded = || entries[i + 1..].iter().any(|later| later.step == entry.step);
            let multiple = self.keep_every > 0 && entry.step.is_multiple_of(self.keep_every);
            if multiple && !superseded() {
                continue;
            }
            // Renamed first: a folder that is half deleted does not look like a checkpoint.
            let doomed = self.dir.join(format!("{TEMPORARY}old-{}", entry.name));
            fs::rename(&entry.path, &doomed)
                .and_then(|()| fs::remove_dir_all(&doomed))
                .map_err(io(&entry.path))?;
        }
        Ok(())
    }

    /// Names and paths of everything in the folder. Names that are not Unicode are not ours.
    fn children(&self) -> Result<Vec<(String, PathBuf)>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io(&self.dir))?,
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io(&self.dir))?;
            if let Ok(name) = entry.file_name().into_string() {
                children.push((name, entry.path()));
            }
        }
        Ok(children)
    }
}
