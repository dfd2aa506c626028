//! Where a model lives: the option `--device`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use candle_core::Device;

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// The processor: `cpu`.
    #[default]
    Cpu,
    /// An NVIDIA GPU, counted from 0: `cuda` is the first one, `cuda:1` the second.
    Cuda(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Cpu => f.write_str("cpu"),
            Place::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu", _) if name == "cpu" => Ok(Place::Cpu),
            ("cuda", number) => number
                .parse()
                .map(Place::Cuda)
                .map_err(|_| format!("`{number}` is not the number of a GPU, which are counted from 0")),
            _ => Err(format!(
                "no device `{name}`; there are cpu, cuda, and cuda:1, cuda:2, ... for further GPUs"
            )),
        }
    }
}

impl Place {
    /// The device. On a GPU, freed memory is kept for the next tensor.
    ///
    /// # Errors
    ///
    /// A GPU, and the program was built without the feature `cuda`, or there is no such GPU.
    pub fn open(self) -> Result<Device> {
        match self {
            Place::Cpu => Ok(Device::Cpu),
            Place::Cuda(_) if !cfg!(feature = "cuda") => anyhow::bail!(
                "--device {self}: this program was built without the feature `cuda`; build it with `--features cuda`, which takes \
                 the CUDA toolkit"
            ),
            Place::Cuda(number) => {
                let device = Device::new_cuda(number).with_context(|| {
                    format!("--device {self}: there is no such GPU, or it cannot be used; `nvidia-smi -L` lists them")
                })?;
                keep_memory(&device);
                Ok(device)
            }
        }
    }

    /// How many runs may be on the device at the same time, if `asked` for or not. A GPU has one: more would take its memory and
    /// its time from each other.
    ///
    /// # Errors
    ///
    /// More were asked for.
    pub fn runs_at_once(self, asked: Option<usize>, usual: usize) -> Result<usize> {
        match (self, asked) {
            (Place::Cpu, asked) => Ok(asked.unwrap_or(usual)),
            (Place::Cuda(_), None | Some(1)) => Ok(1),
            (Place::Cuda(_), Some(runs)) => {
                anyhow::bail!(
                    "--jobs {runs}: a GPU takes one run at a time; leave --jobs out with --device {self}"
                )
            }
        }
    }
}

/// The option of programs that train on one device.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceArgs {
    /// Where the model lives: cpu; cuda, or cuda:1 for the second GPU, with the feature `cuda`
    #[arg(long = "device", value_name = "DEVICE", default_value_t = Place::Cpu)]
    pub place: Place,
}

/// Lets candle keep freed memory of a GPU for the next tensor, instead of handing it back whenever the host waits for the GPU.
/// Where that cannot be set, training is merely slower.
#[allow(clippy::print_stderr, reason = "the user should know why training is slow")]
fn keep_memory(device: &Device) {
    if let Err(problem) = tpgm_candle::keep_freed_memory(device) {
        eprintln!(
            "note: memory that is freed goes back to the driver, which costs time in every step: {problem}"
        );
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Args {
        #[command(flatten)]
        device: DeviceArgs,
    }

    fn parse(options: &str) -> Result<Place, String> {
        let options = ["program"].into_iter().chain(options.split_whitespace());
        Args::try_parse_from(options).map(|args| args.device.place).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_have_names() {
        for (options, place) in [
            ("", Place::Cpu),
            ("--device cpu", Place::Cpu),
            ("--device cuda", Place::Cuda(0)),
            ("--device cuda:0", Place::Cuda(0)),
            ("--device=cuda:12", Place::Cuda(12)),
        ] {
            assert_eq!(parse(options), Ok(place), "{options}");
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert!(Place::Cpu.open().unwrap().is_cpu());
    }

    #[test]
    fn other_names_are_refused() {
        for (options, part) in [
            ("--device gpu", "no device `gpu`; there are cpu, cuda"),
            ("--device cpu:1", "no device `cpu:1`"),
            ("--device CUDA", "no device `CUDA`"),
            ("--device cuda:x", "`x` is not the number of a GPU"),
            ("--device cuda:-1", "`-1` is not the number"),
            ("--device cuda:", "`` is not the number"),
        ] {
            let error = parse(options).unwrap_err();
            assert!(error.contains(part) && error.contains("--device"), "{options}: {error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_a_gpu_is_refused_and_the_message_says_what_to_do() {
        let error = Place::Cuda(1).open().unwrap_err().to_string();
        for part in ["--device cuda:1", "without the feature `cuda`", "--features cuda"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_gpu_takes_one_run_at_a_time() {
        let (cpu, gpu) = (Place::Cpu, Place::Cuda(0));
        assert_eq!([cpu.runs_at_once(None, 4).unwrap(), cpu.runs_at_once(Some(3), 4).unwrap()], [4, 3]);
        assert_eq!([gpu.runs_at_once(None, 4).unwrap(), gpu.runs_at_once(Some(1), 4).unwrap()], [1, 1]);
        assert!(gpu.runs_at_once(Some(2), 4).unwrap_err().to_string().contains("--jobs 2"));
    }
}
