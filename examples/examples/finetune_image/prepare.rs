//! How images are prepared: what files say, and options.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use tpgm_examples::data::images::{Preprocessing, Transform};

use crate::options::Args;

/// How images are prepared, and the file that says so.
#[derive(Debug)]
pub(crate) struct Preparation {
    pub(crate) transform: Transform,
    pub(crate) file: Option<PathBuf>,
}

impl Preparation {
    /// Of the file that is named, or of one beside the model; options count more. `side` is that of the network's images; `usual`
    /// is that of other networks without an option.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or asks for what is not supported; options that make no sense.
    pub(crate) fn find(args: &Args, model: &Path, side: Option<usize>, usual: Option<usize>) -> Result<Self> {
        let found = match &args.preprocessor {
            Some(path) => match Preprocessing::of_file(path)? {
                Some(found) => Some((path.clone(), found)),
                None => bail!("--preprocessor {}: it does not say how images are prepared", path.display()),
            },
            None => Preprocessing::beside(model)?,
        };
        let (file, mut found) = match found {
            Some((file, found)) => (Some(file), found),
            None => (None, Preprocessing::default()),
        };
        let colors = |option: &str, colors: &Option<Vec<f32>>| match colors.as_deref() {
            None => Ok(None),
            Some(&[red, green, blue]) => Ok(Some([red, green, blue])),
            Some(other) => {
                bail!("{option} has {} numbers, not one for each of red, green and blue", other.len())
            }
        };
        found.mean = colors("--mean", &args.mean)?.or(found.mean);
        found.deviation = colors("--deviation", &args.deviation)?.or(found.deviation);
        ensure!(
            found.deviation.is_none_or(|colors| colors.iter().all(|color| *color > 0.0 && color.is_finite()))
                && found.mean.is_none_or(|colors| colors.iter().all(|color| color.is_finite())),
            "--mean and --deviation are numbers, and the deviation is above 0"
        );
        found.resample = args.resample.or(found.resample);
        found.squash = args.squash.or(found.squash);
        let mut transform = found.transform(args.arch().transform(), side.or(args.side).or(usual))?;
        if let Some(resize) = args.resize {
            transform.resize = resize;
        }
        ensure!(
            transform.side > 0 && transform.resize >= transform.side,
            "images are scaled to {} pixels, but the network takes {}: --resize is at least that, and that is at least 1",
            transform.resize,
            transform.side
        );
        Ok(Self { transform, file })
    }

    /// For the terminal.
    pub(crate) fn describe(&self) -> String {
        let from = match &self.file {
            Some(file) => format!("as {} says", file.display()),
            None => "as is usual for this network; no file beside the model says how".to_owned(),
        };
        format!("images are prepared {from}: {}", self.transform)
    }
}
