//! A picture of the data.

use anyhow::Result;
use tpgm_examples::mosaic::Mosaic;

use tpgm_examples::mini::data::{Domain, Images, Request, SIDE, Split};

/// A few classes in all domains.
pub(crate) fn samples(seed: u64, classes: usize) -> Result<String> {
    let request = Request::fine_tuning(seed, classes.min(8)).of(Split::Train, 2);
    let drawn: Vec<Images> = Domain::ALL.iter().map(|domain| request.draw(&[*domain])).collect();
    let rows = Domain::ALL
        .iter()
        .zip(&drawn)
        .map(|(domain, images)| (domain.name(), (0..images.len()).map(|image| images.image(image)).collect()))
        .collect();
    Mosaic { title: "two images of each of some classes", side: SIDE, rows }.svg()
}
