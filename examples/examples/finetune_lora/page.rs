//! The page of a run.

use anyhow::Result;
use candle_core::DType;
use serde::Serialize;
use tpgm_candle::Params;
use tpgm_examples::page::Page;
use tpgm_examples::plot::{Curve, Labels, Style, curves};
use tpgm_examples::study::{Log, Quantity, RADII};
use tpgm_examples::table::Table;

use crate::train::Bound;

/// The page of a run that had these options.
///
/// # Errors
///
/// A plot fails.
pub(crate) fn page(
    config: &impl Serialize,
    bound: Bound,
    params: &Params,
    perplexities: &Table,
    log: &Log,
) -> Result<Page> {
    let mut page = Page::new("finetune_lora: low-rank factors on a text");
    page.table(
        "Perplexity",
        "Of texts that were not trained on, before and after; lower is better.",
        perplexities,
    );
    let curve = Curve { name: "fine-tuning".to_owned(), lines: vec![log.losses.clone()], chosen: None };
    let labels = Labels { title: "training loss", x: "step", y: "loss" };
    page.plot("Training loss", "Of a batch each, not smoothed.", &curves(labels, Style::Lines, &[curve])?);
    let mut factors = Table::new(["factor", "L2 norm"]);
    for param in params.all() {
        let norm = param.var().to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
        factors.rows.push(vec![param.name().to_owned(), format!("{norm:.4}")]);
    }
    page.table("Factors at the end", "How far each factor is from zero, its anchor.", &factors);
    if bound == Bound::Ftp {
        page.table("Radii of FTP at the end", RADII, &log.last());
        page.plot("FTP: radius over the steps", "", &log.over_steps("FTP", Quantity::Radius)?);
    }
    page.settings("Settings", config)?;
    Ok(page)
}
