//! The networks of the papers.

use super::{
    EfficientNetActivation, EfficientNetConfig, EfficientNetGate, EfficientNetPadding, InvertedResidual,
};
use crate::layers::Statistics;

/// Blocks that differ in their stride alone, as the papers list them: expansion, side of the window, stride of the first block,
/// channels, blocks.
type Row = (usize, usize, usize, usize, usize);

/// EfficientNet-B0 and all EfficientNet-Lite.
const EFFICIENTNET: [Row; 7] = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
];

/// MobileNetV2.
const MOBILENET_V2: [Row; 7] = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 3, 2, 32, 3),
    (6, 3, 2, 64, 4),
    (6, 3, 1, 96, 3),
    (6, 3, 2, 160, 3),
    (6, 3, 1, 320, 1),
];

/// A block of MobileNetV3: side of the window, channels inside, channels, whether it squeezes, whether its activation is the
/// hard swish, stride.
type V3Block = (usize, usize, usize, bool, bool, usize);

const SMALL: [&[V3Block]; 5] = [
    &[(3, 16, 16, true, false, 2)],
    &[(3, 72, 24, false, false, 2), (3, 88, 24, false, false, 1)],
    &[(5, 96, 40, true, true, 2), (5, 240, 40, true, true, 1), (5, 240, 40, true, true, 1)],
    &[(5, 120, 48, true, true, 1), (5, 144, 48, true, true, 1)],
    &[(5, 288, 96, true, true, 2), (5, 576, 96, true, true, 1), (5, 576, 96, true, true, 1)],
];

const LARGE: [&[V3Block]; 6] = [
    &[(3, 16, 16, false, false, 1)],
    &[(3, 64, 24, false, false, 2), (3, 72, 24, false, false, 1)],
    &[(5, 72, 40, true, false, 2), (5, 120, 40, true, false, 1), (5, 120, 40, true, false, 1)],
    &[
        (3, 240, 80, false, true, 2),
        (3, 200, 80, false, true, 1),
        (3, 184, 80, false, true, 1),
        (3, 184, 80, false, true, 1),
    ],
    &[(3, 480, 112, true, true, 1), (3, 672, 112, true, true, 1)],
    &[(5, 672, 160, true, true, 2), (5, 960, 160, true, true, 1), (5, 960, 160, true, true, 1)],
];

impl EfficientNetConfig {
    /// EfficientNet-Lite0, as trained in TensorFlow; for timm's weights without `tf_` see [`EfficientNetConfig::pytorch`].
    pub fn lite0() -> Self {
        Self::lite(1.0, 1.0)
    }

    /// EfficientNet-Lite1, as [`EfficientNetConfig::lite0`].
    pub fn lite1() -> Self {
        Self::lite(1.0, 1.1)
    }

    /// EfficientNet-Lite2, as [`EfficientNetConfig::lite0`].
    pub fn lite2() -> Self {
        Self::lite(1.1, 1.2)
    }

    /// EfficientNet-Lite3, as [`EfficientNetConfig::lite0`].
    pub fn lite3() -> Self {
        Self::lite(1.2, 1.4)
    }

    /// EfficientNet-Lite4, as [`EfficientNetConfig::lite0`].
    pub fn lite4() -> Self {
        Self::lite(1.4, 1.8)
    }

    /// EfficientNet-B0, as trained in TensorFlow; for torchvision's weights, and timm's without `tf_`, see
    /// [`EfficientNetConfig::pytorch`].
    pub fn b0() -> Self {
        let mut stages = stages(EFFICIENTNET, 32, EfficientNetActivation::Silu);
        let mut inputs = 32;
        for block in stages.iter_mut().flatten() {
            block.squeezed = Some(inputs / 4);
            inputs = block.outputs;
        }
        Self::new(stages, EfficientNetActivation::Silu).tensorflow()
    }

    /// MobileNetV2 (Sandler et al., arXiv 1801.04381), as trained in PyTorch.
    pub fn mobilenet_v2() -> Self {
        let activation = EfficientNetActivation::Relu6;
        Self::new(stages(MOBILENET_V2, 32, activation), activation).pytorch()
    }

    /// The small MobileNetV3 (Howard et al., arXiv 1905.02244), as trained by torchvision, whose norms are TensorFlow's; for
    /// timm's weights see [`EfficientNetConfig::pytorch`] and, with `tf_`, [`EfficientNetConfig::tensorflow`].
    pub fn mobilenet_v3_small() -> Self {
        Self::mobilenet_v3(&SMALL, 576, 1024)
    }

    /// The large MobileNetV3, as [`EfficientNetConfig::mobilenet_v3_small`].
    pub fn mobilenet_v3_large() -> Self {
        Self::mobilenet_v3(&LARGE, 960, 1280)
    }

    /// Channels `width` times as many, and blocks `depth` times, but for the first convolution, the last one, and the number of
    /// blocks of the first and the last stage.
    fn lite(width: f64, depth: f64) -> Self {
        let mut rows = EFFICIENTNET;
        let end = rows.len() - 1;
        for (i, (.., outputs, blocks)) in rows.iter_mut().enumerate() {
            *outputs = divisible_by_eight(width * *outputs as f64);
            if i > 0 && i < end {
                *blocks = (depth * *blocks as f64).ceil() as usize;
            }
        }
        let activation = EfficientNetActivation::Relu6;
        Self::new(stages(rows, 32, activation), activation).tensorflow()
    }

    fn mobilenet_v3(stages: &[&[V3Block]], last: usize, hidden: usize) -> Self {
        let block = |&(kernel, expanded, outputs, squeezes, hard, stride): &V3Block| InvertedResidual {
            expanded,
            kernel,
            stride,
            outputs,
            squeezed: squeezes.then(|| divisible_by_eight(expanded as f64 / 4.0)),
            activation: if hard { EfficientNetActivation::HardSwish } else { EfficientNetActivation::Relu },
        };
        let stages = stages.iter().map(|blocks| blocks.iter().map(block).collect()).collect();
        Self {
            stem: 16,
            last,
            hidden: Some(hidden),
            gate: EfficientNetGate::HardSigmoid,
            ..Self::new(stages, EfficientNetActivation::HardSwish).tensorflow()
        }
        .padding(EfficientNetPadding::Symmetric)
    }

    fn new(stages: Vec<Vec<InvertedResidual>>, activation: EfficientNetActivation) -> Self {
        Self {
            channels: 3,
            stem: 32,
            stages,
            last: 1280,
            hidden: None,
            activation,
            gate: EfficientNetGate::Sigmoid,
            padding: EfficientNetPadding::Symmetric,
            norm_eps: 1e-5,
            norm_momentum: 0.1,
            statistics: Statistics::Batch,
            dropout: 0.0,
            drop_connect: 0.0,
        }
    }

    fn padding(self, padding: EfficientNetPadding) -> Self {
        Self { padding, ..self }
    }
}

fn stages(
    rows: [Row; 7],
    mut inputs: usize,
    activation: EfficientNetActivation,
) -> Vec<Vec<InvertedResidual>> {
    let stage = |(expansion, kernel, stride, outputs, blocks): Row| {
        let block = |i: usize| {
            let (inputs, stride) = if i == 0 { (inputs, stride) } else { (outputs, 1) };
            InvertedResidual {
                expanded: expansion * inputs,
                kernel,
                stride,
                outputs,
                squeezed: None,
                activation,
            }
        };
        let stage = (0..blocks).map(block).collect();
        inputs = outputs;
        stage
    };
    rows.into_iter().map(stage).collect()
}

/// The nearest multiple of eight, or the next one if that is smaller by more than a tenth.
fn divisible_by_eight(channels: f64) -> usize {
    let nearest = ((channels + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * channels { nearest + 8 } else { nearest }
}
