//! A copy of this program that trains for another one, as a peer of it: with an allocator of its own.
//!
//! Answers the commands that `torch_training.py` describes.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::ValueEnum;
use serde_json::json;

use crate::network::{Checkpoint, Network};
use crate::training::{Recipe, Training};

/// What can be trained, by the beginning of its name; the end says what becomes of freed memory.
const RECIPES: [(&str, Recipe); 2] = [("ours", Recipe::PLAIN), ("candle_adamw", Recipe::Candle)];

struct Server<'a> {
    suffix: &'a str,
    threads: usize,
    device: &'a Device,
    network: Option<(Network, Checkpoint)>,
    live: HashMap<String, Training>,
}

/// Answers the commands of standard input until it ends, about training on a device.
///
/// # Errors
///
/// The other program has gone.
pub(crate) fn serve(suffix: &str, threads: usize, device: &Device) -> Result<()> {
    let mut server = Server { suffix, threads, device, network: None, live: HashMap::new() };
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        match server.answer(&line?) {
            Ok(answer) => writeln!(answers, "{}", format!("ok {answer}").trim_end())?,
            Err(error) => writeln!(answers, "error {}", format!("{error:#}").replace('\n', " "))?,
        }
        answers.flush()?;
    }
    Ok(())
}

impl Server<'_> {
    fn answer(&mut self, line: &str) -> Result<String> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("hello", _) => {
                let peers: Vec<_> = RECIPES.map(|(name, _)| format!("{name}{}", self.suffix)).into();
                let (program, version) = ("copy", env!("CARGO_PKG_VERSION"));
                let device = if self.device.is_cpu() { "cpu" } else { "cuda" };
                let hello = json!({
                    "program": program, "version": version, "threads": self.threads, "device": device, "peers": peers
                });
                return Ok(hello.to_string());
            }
            ("network", name) => {
                let network = Network::from_str(name, false).map_err(anyhow::Error::msg)?;
                self.network = Some((network, network.checkpoint()?));
            }
            ("prepare", name) => {
                let (network, checkpoint) = self.network.as_ref().context("`network` comes first")?;
                let plain = name.strip_suffix(self.suffix).unwrap_or(name);
                let recipe = RECIPES.iter().find(|(recipe, _)| *recipe == plain);
                let (_, recipe) = recipe.with_context(|| format!("no peer `{name}`"))?;
                let training = Training::new(*network, checkpoint, *recipe, self.device)?;
                self.live.insert(name.to_owned(), training);
            }
            ("run", name) => {
                return Ok(self.training(name)?.step()?.map(|seconds| format!("{seconds:.9}")).join(" "));
            }
            ("whole", name) => return Ok(format!("{:.9}", self.training(name)?.whole_step()?)),
            _ => bail!("unknown command `{line}`"),
        }
        Ok(String::new())
    }

    fn training(&mut self, name: &str) -> Result<&mut Training> {
        self.live.get_mut(name).with_context(|| format!("`{name}` is not prepared"))
    }
}

#[cfg(test)]
mod tests {
    use tpgm_benches::{AS_IS, KEPT};

    use super::*;

    #[test]
    fn copies_offer_what_the_methods_ask_for() {
        let names: Vec<&str> =
            crate::methods().iter().flat_map(|(.., peers)| peers.iter().copied()).collect();
        for suffix in [AS_IS, KEPT] {
            let stems: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(suffix)).collect();
            assert!(!stems.is_empty(), "nobody's name ends in {suffix}");
            assert!(stems.iter().all(|stem| RECIPES.iter().any(|(name, _)| name == stem)), "{stems:?}");
        }
    }

    #[test]
    fn answers_are_those_of_a_peer() {
        let mut server =
            Server { suffix: "_kept", threads: 1, device: &Device::Cpu, network: None, live: HashMap::new() };
        let mut error = |line: &str| format!("{:#}", server.answer(line).unwrap_err());
        assert_eq!(error("prepare ours_kept"), "`network` comes first");
        assert!(error("network gpt").contains("gpt"));
        assert!(error("drop ours_kept").contains("drop"));
        server.answer("network mini").unwrap();
        assert_eq!(
            format!("{:#}", server.answer("run ours_kept").unwrap_err()),
            "`ours_kept` is not prepared"
        );
        assert_eq!(
            format!("{:#}", server.answer("prepare theirs_kept").unwrap_err()),
            "no peer `theirs_kept`"
        );
        for (name, _) in RECIPES {
            assert!(server.answer("hello").unwrap().contains(&format!("\"{name}_kept\"")));
            server.answer(&format!("prepare {name}_kept")).unwrap();
            let answer = server.answer(&format!("run {name}_kept")).unwrap();
            let parts: Vec<f64> = answer.split(' ').map(|word| word.parse().unwrap()).collect();
            assert!(parts.len() == 4 && parts[..3].iter().all(|part| *part > 0.0), "{answer}");
            let whole = server.answer(&format!("whole {name}_kept")).unwrap();
            assert!(whole.parse::<f64>().unwrap() > 0.0, "{whole}");
        }
    }
}
