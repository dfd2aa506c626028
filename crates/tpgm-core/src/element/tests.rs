use super::*;

#[test]
fn load_and_store_round_to_the_nearest_value_of_each_type() {
    let exact = [0.0, -1.5, 0.099_999_999_3, 1e-9, 3.5e4, -2.0f64.powi(-14)];
    for dtype in DType::ALL {
        let buffer = Buffer::from_f64(dtype, &exact);
        let mut wide = vec![0.0f32; exact.len()];
        f32::load(buffer.as_slice(), &mut wide);
        let mut back = Buffer::zeros(dtype, exact.len());
        f32::store(&wide, back.as_mut());
        for (i, x) in exact.iter().enumerate() {
            let expected = match dtype {
                DType::F64 | DType::F32 => f64::from(*x as f32),
                DType::F16 => f16::from_f32(*x as f32).to_f64(),
                DType::BF16 => bf16::from_f32(*x as f32).to_f64(),
            };
            assert_eq!(back.as_slice().get(i), expected, "{dtype} {x}");
        }
    }
}
