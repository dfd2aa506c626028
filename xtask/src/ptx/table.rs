//! The table of what each kernel takes on each GPU.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::ptxas::{GPUS, Usage};

/// One line per kernel, from the usages per compute capability (times ten).
pub(super) fn of(usages: &BTreeMap<u32, Vec<Usage>>) -> String {
    let mut kernels: BTreeMap<&str, BTreeMap<u32, &Usage>> = BTreeMap::new();
    for (&capability, usages) in usages {
        for usage in usages {
            kernels.entry(&usage.kernel).or_default().insert(capability, usage);
        }
    }
    let width = kernels.keys().map(|name| name.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}  shared  stack", "kernel");
    for gpu in GPUS {
        let _ = write!(text, "  {:>7}", format!("sm_{}", gpu.capability));
    }
    for (name, usages) in &kernels {
        let most = |of: fn(&Usage) -> u32| usages.values().map(|usage| of(usage)).max().unwrap_or(0);
        let (shared, stack) = (most(|usage| usage.shared), most(|usage| usage.stack));
        let _ = write!(text, "\n{name:width$}  {shared:>6}  {stack:>5}");
        for gpu in GPUS {
            let cell = usages.get(&gpu.capability).map_or(String::new(), |usage| {
                format!("{} x{}", usage.registers, gpu.resident_blocks(usage))
            });
            let _ = write!(text, "  {cell:>7}");
        }
    }
    text.push_str("\n(registers per thread x resident blocks per multiprocessor; shared and stack in bytes)");
    text
}

/// One line for every kernel that spills registers.
pub(super) fn spills(usages: &BTreeMap<u32, Vec<Usage>>) -> Vec<String> {
    let mut lines = Vec::new();
    for (capability, usages) in usages {
        for usage in usages.iter().filter(|usage| usage.spills > 0) {
            lines.push(format!("{} for sm_{capability}: {} bytes", usage.kernel, usage.spills));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_registers_and_blocks_of_every_gpu() {
        let usage = |registers, stack| Usage {
            kernel: "step".to_owned(),
            registers,
            shared: 64,
            stack,
            spills: stack,
        };
        let usages = BTreeMap::from([(75, vec![usage(40, 0)]), (90, vec![usage(48, 8)])]);
        assert_eq!(spills(&usages), ["step for sm_90: 8 bytes"]);
        let text = of(&usages);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[0],
            ["kernel", "shared", "stack", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
        );
        assert_eq!(lines[1], ["step", "64", "8", "40", "x4", "48", "x5"]);
    }
}
