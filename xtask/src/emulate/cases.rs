//! The cases of the self-test: what the kernels of `kernels/emulator/self_test/` have to write, by the plainest means.

use anyhow::{Result, ensure};
use tpgm_cuda::{Device, Emulator};

use super::library::Variant::{self, Asan, Plain, Tsan, Ubsan};

/// One kernel.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Emulator) -> Result<()>,
    /// Which variants have to find the planted mistake, and a part of what they say. Empty: there is no mistake.
    pub(crate) found_by: &'static [(Variant, &'static str)],
}

const fn correct(name: &'static str, run: fn(&Emulator) -> Result<()>) -> Case {
    Case { name, run, found_by: &[] }
}

const fn planted(
    name: &'static str,
    run: fn(&Emulator) -> Result<()>,
    found_by: &'static [(Variant, &'static str)],
) -> Case {
    Case { name, run, found_by }
}

/// What all variants say, since the emulator itself does.
macro_rules! everywhere {
    ($text:expr) => {
        &[(Plain, $text), (Ubsan, $text), (Asan, $text), (Tsan, $text)]
    };
}

const RACE: &[(Variant, &str)] = &[(Tsan, "data race")];
const BOUNDS: &[(Variant, &str)] = &[(Ubsan, "out of bounds"), (Asan, "out of bounds")];

pub(crate) const CASES: &[Case] = &[
    correct("places", places),
    correct("barriers", barriers),
    correct("early_end", early_end),
    correct("warps", warps),
    correct("atomics", atomics),
    correct("vectors", vectors),
    correct("mathematics", super::numbers::mathematics),
    correct("halves", super::numbers::halves),
    correct("tickets", tickets),
    correct("complete_hand_over", |emulator| hand_over(emulator, "complete_hand_over")),
    planted("missing_barrier", |emulator| once(emulator, "missing_barrier"), RACE),
    planted("missing_second_barrier", |emulator| once(emulator, "missing_second_barrier"), RACE),
    planted("shuffle_as_barrier", |emulator| once(emulator, "shuffle_as_barrier"), RACE),
    planted("missing_release", |emulator| hand_over(emulator, "missing_release"), RACE),
    planted("missing_acquire", |emulator| hand_over(emulator, "missing_acquire"), RACE),
    planted("race_of_blocks", |emulator| once(emulator, "race_of_blocks"), RACE),
    planted(
        "global_overrun",
        |emulator| overrun(emulator, "global_overrun"),
        &[(Asan, "heap-buffer-overflow")],
    ),
    planted("shared_overrun", |emulator| overrun(emulator, "shared_overrun"), BOUNDS),
    planted(
        "shared_overrun_by_pointer",
        |emulator| overrun(emulator, "shared_overrun_by_pointer"),
        &[(Asan, "global-buffer-overflow")],
    ),
    planted(
        "misaligned",
        |emulator| once(emulator, "misaligned"),
        &[(Ubsan, "misaligned address"), (Asan, "misaligned address")],
    ),
    planted(
        "divergent_barrier",
        |emulator| once(emulator, "divergent_barrier"),
        everywhere!("divergent barrier: 62 of 64 threads wait at __syncthreads, 1 of warp 0 at __syncwarp"),
    ),
    planted(
        "divergent_kinds",
        |emulator| once(emulator, "divergent_kinds"),
        everywhere!(
            "divergent barrier: threads wait at __syncthreads_or while thread 3 comes to __syncthreads"
        ),
    ),
    planted("divergent_warp", |emulator| once(emulator, "divergent_warp"), everywhere!("divergent warp")),
    planted(
        "absent_lane",
        |emulator| once(emulator, "absent_lane"),
        everywhere!("thread 0 shuffles from lane 16, which is not in the mask 0x0000ffff"),
    ),
    planted(
        "higher_ticket",
        |emulator| once(emulator, "higher_ticket"),
        everywhere!("still polls 1 s after the launch"),
    ),
];

/// Blocks of a launch: more than run at a time on small machines.
pub(crate) const BLOCKS: usize = 4;
/// Threads of a block.
pub(crate) const THREADS: usize = 64;
const WARP: usize = 32;
/// Threads of a launch.
const ALL: usize = BLOCKS * THREADS;

/// Runs a kernel on `input`, over what `output` holds; `count` is the number it is given.
pub(crate) fn launch(
    emulator: &Emulator,
    kernel: &'static str,
    input: &[u8],
    output: &[u8],
    count: u64,
) -> Result<Vec<u8>> {
    let mut from = emulator.allocate(input.len())?;
    emulator.write(&mut from, 0, input)?;
    let mut to = emulator.allocate(output.len())?;
    emulator.write(&mut to, 0, output)?;
    let table: Vec<u8> = [emulator.address(&from), emulator.address(&to), count]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let mut argument = emulator.allocate(table.len())?;
    emulator.write(&mut argument, 0, &table)?;
    emulator.launch(kernel, BLOCKS, emulator.address(&argument))?;
    let mut bytes = vec![0; output.len()];
    emulator.read(&to, 0, &mut bytes)?;
    Ok(bytes)
}

pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(got: &[T], expected: &[T]) -> Result<()> {
    ensure!(got.len() == expected.len(), "{} numbers, not {}", got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        ensure!(got == expected, "number {i} is {got:?}, not {expected:?}");
    }
    Ok(())
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn longs(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|b| u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
        .collect()
}

pub(crate) fn doubles(bytes: &[u8]) -> Vec<f64> {
    longs(bytes).into_iter().map(f64::from_bits).collect()
}

fn places(emulator: &Emulator) -> Result<()> {
    let got = launch(emulator, "places", &[], &[0; ALL * 16], 0)?;
    let expected: Vec<u32> =
        (0..ALL).flat_map(|i| [i % THREADS, i / THREADS, THREADS, BLOCKS]).map(|n| n as u32).collect();
    equal(&words(&got), &expected)
}

fn barriers(emulator: &Emulator) -> Result<()> {
    let got = launch(emulator, "barriers", &[], &[0; ALL * 8], 0)?;
    let mirrored = |i: usize| i / THREADS * THREADS + (THREADS - 1 - i % THREADS);
    let expected: Vec<u32> = (0..ALL).flat_map(|i| [mirrored(i) as u32, 0b0101]).collect();
    equal(&words(&got), &expected)
}

fn early_end(emulator: &Emulator) -> Result<()> {
    let got = launch(emulator, "early_end", &[], &[0; ALL * 4], 0)?;
    let sum = (0..THREADS as u32).filter(|thread| thread % 2 == 0).sum();
    let expected: Vec<u32> = (0..ALL).map(|i| if i % 2 == 0 { sum } else { 0 }).collect();
    equal(&words(&got), &expected)
}

fn warps(emulator: &Emulator) -> Result<()> {
    let got = launch(emulator, "warps", &[], &[0; ALL * 48], 0)?;
    let mut expected = Vec::new();
    for i in 0..ALL {
        let (thread, lane) = (i % THREADS, i % WARP);
        let first = thread - lane;
        let sum: usize = (first..first + WARP).sum();
        let with_neighbor = sum + if lane < WARP / 2 { thread ^ 1 } else { 0 };
        let third = first + 3;
        let ballot: u64 = (0..WARP).filter(|lane| (first + lane) % 3 == 0).map(|lane| 1 << lane).sum();
        let numbers = [with_neighbor, sum, sum].map(|n| n as f64);
        expected.extend(numbers);
        expected.extend([butterfly()[lane] as f64, third as f64, ballot as f64]);
    }
    equal(&doubles(&got), &expected)
}

/// What the 64-bit words of a warp's lanes are after the steps of the kernel `warps`.
fn butterfly() -> Vec<u64> {
    let mut lanes: Vec<u64> = (0..WARP).map(|lane| 1 << lane).collect();
    for distance in [16, 8, 4, 2, 1] {
        lanes = (0..WARP).map(|lane| lanes[lane] | lanes[lane ^ distance] << 1).collect();
    }
    lanes
}

fn atomics(emulator: &Emulator) -> Result<()> {
    let before: Vec<u8> = [0, u64::MAX, 0, 0, 0, 0].iter().flat_map(|n: &u64| n.to_ne_bytes()).collect();
    let mut got = longs(&launch(emulator, "atomics", &[], &before, 0)?);
    got[3] += got[4]; // which of them is last is not told
    got[4] = 0;
    let all = ALL as u64;
    equal(&got, &[all, 0, all - 1, all * (all - 1) / 2, 0, all])
}

fn vectors(emulator: &Emulator) -> Result<()> {
    // Bits of finite numbers of f32 and f64.
    let input: Vec<u8> =
        (0..ALL as u32 * 4).flat_map(|n| (0x3f80_0000 | (n * 9_973)).to_ne_bytes()).collect();
    let got = launch(emulator, "vectors", &input, &[0; ALL * 64], 0)?;
    equal(&words(&got), &words(&input.repeat(4)))
}

fn tickets(emulator: &Emulator) -> Result<()> {
    let got = launch(emulator, "tickets", &[], &[0; 8 + ALL * 4], 0)?;
    let mut expected = vec![BLOCKS as u32; 2];
    expected.extend((0..ALL).map(|i| (i / THREADS + 1) as u32));
    equal(&words(&got), &expected)
}

/// The first ticket's 7 has to reach the second.
fn hand_over(emulator: &Emulator, kernel: &'static str) -> Result<()> {
    let got = words(&launch(emulator, kernel, &[], &[0; 16], 0)?);
    equal(&got, &[BLOCKS as u32, 1, 7, 7])
}

/// With memory enough for a correct kernel.
fn once(emulator: &Emulator, kernel: &'static str) -> Result<()> {
    launch(emulator, kernel, &[0; THREADS * 16 + 16], &[0; ALL * 16], 0).map(drop)
}

/// With a count that is one more than what is there: global memory of 256 words and shared memory of 64.
fn overrun(emulator: &Emulator, kernel: &'static str) -> Result<()> {
    let count = if kernel == "global_overrun" { ALL } else { THREADS } as u64 + 1;
    launch(emulator, kernel, &[], &[0; ALL * 4], count).map(drop)
}
