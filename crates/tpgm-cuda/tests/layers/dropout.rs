use tpgm_cuda::layers::Dropout;

use super::{Backend, DType, Device, Gpu, HostBuffer, Layers, TYPES, numbers};

/// Philox4x32-10 as its authors define it.
fn philox([mut a, mut b, mut c, mut d]: [u32; 4], [mut first, mut second]: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (x, y) = (u64::from(a) * 0xD251_1F53, u64::from(c) * 0xCD9E_8D57);
        let high = |x: u64| (x >> 32) as u32;
        (a, b, c, d) = (high(y) ^ b ^ first, y as u32, high(x) ^ d ^ second, x as u32);
        first = first.wrapping_add(0x9E37_79B9);
        second = second.wrapping_add(0xBB67_AE85);
    }
    [a, b, c, d]
}

/// What an element becomes, with the arithmetic of the kernels.
fn dropped(dropout: Dropout, x: &[f64]) -> Vec<f64> {
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let threshold = dropout.probability * 2f64.powi(32);
    let scale = (1.0 / (1.0 - dropout.probability)) as f32;
    let one = |(i, &x): (usize, &f64)| {
        let ([low, high], [from, to]) = (words(i as u64 / 4), words(dropout.draw));
        let bits = philox([low, high, from, to], words(dropout.seed))[i % 4];
        if f64::from(bits) < threshold { 0.0 } else { f64::from(x as f32 * scale) }
    };
    x.iter().enumerate().map(one).collect()
}

/// The vectors of Random123 (`kat_vectors`), which comes with the paper.
pub(crate) fn the_generator_of_masks_is_the_published_one<D: Device>(gpu: &Gpu<D>) {
    let all = u32::MAX;
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([all; 4], [all; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    assert_eq!(
        philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
    // The first vector by the kernel: each number is the lowest threshold that it is not below.
    let layers = Layers::on(gpu.device().clone());
    let x = gpu.upload(&HostBuffer::from_f64(DType::F32, &[1.0; 4])).unwrap();
    let mut y = gpu.zeros(DType::F32, 4).unwrap();
    for (i, bits) in [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8].into_iter().enumerate() {
        let mut kept = |threshold: u32| {
            let probability = f64::from(threshold) * (-32f64).exp2();
            let dropout = Dropout { probability, seed: 0, draw: 0 };
            layers.dropout(dropout, x.view(), y.view_mut()).unwrap();
            gpu.download(&y).unwrap().to_f64()[i] != 0.0
        };
        assert!(kept(bits) && !kept(bits + 1), "number {i} is not {bits:#x}");
    }
}

/// Bit for bit: lengths that end inside, at and behind four elements and a block, addresses that no vector can be read at.
pub(crate) fn masks_are_functions_of_seed_draw_and_index<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    for (i, (len, dtype)) in
        [0, 1, 4, 7, 256, 1027].iter().flat_map(|&len| TYPES.map(|dtype| (len, dtype))).enumerate()
    {
        let offset = [0, 1, 4][i % 3];
        let dropout = Dropout {
            probability: [0.1, 0.5, 0.9, 0.0][i % 4],
            seed: [1, u64::MAX, 0x0123_4567_89ab_cdef][i / 3 % 3],
            draw: [0, 1 << 40][i % 2] + i as u64,
        };
        let x = numbers(1, offset + len, 3.0, dtype);
        let on = gpu.upload(&HostBuffer::from_f64(dtype, &x)).unwrap();
        let mut y = gpu.upload(&HostBuffer::from_f64(dtype, &vec![77.0; offset + len + 3])).unwrap();
        let to = y.view_mut().slice(offset..offset + len);
        layers.dropout(dropout, on.view().slice(offset..offset + len), to).unwrap();
        let rounded = HostBuffer::from_f64(dtype, &dropped(dropout, &x[offset..])).to_f64();
        let got = gpu.download(&y).unwrap().to_f64();
        assert_eq!(got[offset..offset + len], rounded, "{dropout:?} of {len} {dtype} from {offset}");
        assert!(got[..offset].iter().chain(&got[offset + len..]).all(|&y| y == 77.0), "written outside");
    }
}

pub(crate) fn dropout_refuses_what_does_not_fit<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let (x, mut y) = (gpu.zeros(DType::F32, 4).unwrap(), gpu.zeros(DType::F32, 5).unwrap());
    let mut error = |probability, len| {
        let dropout = Dropout { probability, seed: 1, draw: 1 };
        layers.dropout(dropout, x.view(), y.view_mut().slice(0..len)).map_err(|error| error.to_string())
    };
    assert_eq!(error(0.5, 4), Ok(()));
    assert_eq!(error(0.5, 5).unwrap_err(), "dropout: `y` has 5 elements, but 4 are needed");
    for probability in [1.0, -0.1, f64::NAN] {
        assert!(error(probability, 4).unwrap_err().contains("`probability`"));
    }
}
