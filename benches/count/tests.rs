//! Small cases counted by hand, and the graphs of the models.

use super::layers::Linear;
use super::operations::{One, Two};
use super::tape::{How, T, Tally, Tape};
use super::{Network, Step, count};

fn step(tape: &Tape) -> [(u64, u64); 2] {
    let Step { forward, backward, .. } = tape.step();
    [forward, backward].map(|Tally { launches, bytes }| (launches, bytes))
}

/// Of a softmax of two rows of four numbers in f32: 32 bytes, and 8 for a number a row.
fn softmax(how: How) -> [(u64, u64); 2] {
    let mut tape = Tape::new(how, 4);
    let x = tape.variable(&[2, 4], 4);
    tape.softmax(&x);
    step(&tape)
}

#[test]
fn a_softmax_is_counted_as_by_hand() {
    // The maximum, the difference, e of it, the sum, the quotient.
    let forward = (32 + 8) + (32 + 8 + 32) + (32 + 32) + (32 + 8) + (32 + 8 + 32);
    let clear_and_add = 32 + 3 * 32;
    // grad / sum; grad * e; sum^2 from what is broadcast; their quotient; both added up.
    let quotient = (32 + 8 + 32) + 3 * 32 + (8 + 32) + 3 * 32 + 2 * clear_and_add;
    // The sum of the broadcast one's, cleared and added; that added to e's, a second part.
    let sum = (32 + 8) + (8 + 3 * 8) + (32 + 8 + 32);
    // grad * e; added to the difference, and from there to x and, in vain, to the maximum.
    let rest = 3 * 32 + 3 * clear_and_add;
    assert_eq!(softmax(How::Composed), [(5, forward), (8 + 4 + 7, quotient + sum + rest)]);
    assert_eq!(softmax(How::Ours), [(1, 64), (3, 3 * 32 + clear_and_add)]);
    assert_eq!(softmax(How::Floor), [(1, 64), (1, 3 * 32)]);
}

/// Two rows of three numbers to four outputs, in f32: 24 bytes of x, 48 of the weight, 16 of the bias, 32 of the result.
fn linear(how: How, trained: bool) -> [(u64, u64); 2] {
    let mut tape = Tape::new(how, 4);
    let x = tape.variable(&[2, 3], 4);
    let make = if trained { Tape::variable } else { Tape::constant };
    let layer = Linear { weight: make(&mut tape, &[4, 3], 4), bias: Some(make(&mut tape, &[4], 4)) };
    tape.linear(&x, &layer);
    step(&tape)
}

#[test]
fn a_linear_layer_is_counted_as_by_hand() {
    let product = 24 + 48 + 32;
    let part = |bytes: u64| bytes + 3 * bytes;
    assert_eq!(
        linear(How::Ours, true),
        [(2, product + 2 * 32), (4 + 6, 2 * product + 32 + part(24) + part(48) + part(16))]
    );
    // Nothing of what is frozen.
    assert_eq!(linear(How::Ours, false), [(2, product + 2 * 32), (3, product + part(24))]);
    assert_eq!(linear(How::Floor, true), [(1, product), (2, 2 * product)]);
    // Reshaped, added to and from the product each: parts of 32 bytes. The bias is broadcast, the weight transposed, x reshaped.
    let sum = 3 * part(32) + (32 + 16) + part(16);
    let products = 2 * product + part(24) + part(48) + part(48) + part(24);
    assert_eq!(linear(How::Composed, true), [(2, product + 32 + 16 + 32), (9 + 10, sum + products)]);
    // Both products all the same, and the gradients of the weight, transposed, and of the bias, broadcast.
    let frozen = 3 * part(32) + 2 * product + part(24) + part(48) + part(24);
    assert_eq!(linear(How::Composed, false)[1], (6 + 8, frozen));
}

#[test]
fn a_second_part_of_a_gradient_is_added_without_clearing() {
    let mut tape = Tape::new(How::Ours, 2);
    let x = tape.variable(&[8], 2);
    let y = tape.one(One::Affine, &x);
    tape.two(Two::Add, &x, &y);
    // To x, to y; through y to x again: a factor, and the sum.
    assert_eq!(step(&tape)[1], (2 + 2 + 1 + 1, 2 * (16 + 48) + 32 + 48));
}

#[test]
fn layouts_cost_where_they_are_written_out() {
    let mut tape = Tape::new(How::Ours, 4);
    let x = tape.constant(&[2, 3, 4], 4);
    let y = tape.transpose(&x, 0, 1);
    let part = tape.narrow(&x, 2, 1, 2);
    assert_eq!(step(&tape), [(0, 0); 2]);
    tape.contiguous(&y);
    tape.reshape(&part, &[12]);
    assert_eq!(step(&tape), [(2, 2 * 96 + 2 * 48), (0, 0)]);
    tape.contiguous(&x);
    assert_eq!(step(&tape)[0].0, 2);
}

#[test]
fn fewer_launches_and_bytes_than_composed_and_no_fewer_than_the_floor() {
    for network in Network::ALL {
        for element in [2, 4] {
            let [composed, ours, floor] =
                [How::Composed, How::Ours, How::Floor].map(|how| count(network, how, element));
            for pass in [|step: Step| step.forward, |step: Step| step.backward] {
                let [composed, ours, floor] = [composed, ours, floor].map(pass);
                assert!(composed.launches > ours.launches && ours.launches > floor.launches, "{network:?}");
                assert!(composed.bytes > ours.bytes && ours.bytes > floor.bytes, "{network:?}");
            }
        }
    }
}

/// A tensor of the walk is no larger in memory than its elements.
#[test]
fn what_is_broadcast_keeps_its_size() {
    let mut tape = Tape::new(How::Ours, 4);
    let row: T = tape.constant(&[1, 4], 4);
    let rows = tape.broadcast(&row, &[3, 4]);
    assert_eq!((rows.held, rows.bytes()), (16, 48));
}

#[cfg(feature = "end-to-end")]
mod graphs {
    use candle_core::{DType, Device, Module, Tensor};
    use candle_nn::{VarBuilder, VarMap};
    use tpgm_candle::models::bert::{BertClassifier, BertConfig, BertInput, Pooling};
    use tpgm_candle::models::llama::{Llama, LlamaConfig};
    use tpgm_candle::models::vit::{Vit, VitConfig, VitLayout};
    use tpgm_candle::nn::lora::{LoraConfig, VarFactors};
    use tpgm_candle::nn::{DropoutRng, cross_entropy, linear, recorded};

    use super::super::networks::{Network, Sizes, shapes};

    const SIZES: Sizes = Sizes {
        batch: 2,
        length: 4,
        patch: 2,
        size: 12,
        heads: 4,
        inner: 20,
        blocks: 2,
        vocabulary: 11,
        positions: 5,
        classes: 3,
    };

    /// Shapes of the nodes of candle's graph, and of what gradients flow through inside its blocks.
    fn graph(loss: impl FnOnce() -> Tensor) -> [Vec<Vec<usize>>; 2] {
        let (loss, operations) = recorded(loss);
        let nodes = loss.sorted_nodes().iter().map(|node| node.dims().to_vec()).collect();
        let results = operations.into_iter().flat_map(|operation| operation.results);
        let inner = results.filter(|(_, tracked)| *tracked).map(|(shape, _)| shape).collect();
        let mut both: [Vec<Vec<usize>>; 2] = [nodes, inner];
        both.iter_mut().for_each(|shapes| shapes.sort());
        both
    }

    #[test]
    fn bert_is_walked_as_it_is() {
        let config = BertConfig {
            vocab_size: SIZES.vocabulary,
            hidden_size: SIZES.size,
            num_hidden_layers: SIZES.blocks,
            num_attention_heads: SIZES.heads,
            intermediate_size: SIZES.inner,
            max_position_embeddings: SIZES.positions,
            ..BertConfig::default()
        };
        let weights = VarMap::new();
        let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
        let model =
            BertClassifier::new(&config, SIZES.classes, Pooling::Cls, &DropoutRng::new(1), vb).unwrap();
        let ids = Tensor::zeros((SIZES.batch, SIZES.length), DType::U32, &Device::Cpu).unwrap();
        let loss = || {
            let logits = model.forward(&BertInput::new(&ids, &ids.ones_like().unwrap()), true).unwrap();
            cross_entropy(&logits, &Tensor::new(&[0u32, 2], &Device::Cpu).unwrap()).unwrap()
        };
        assert_eq!(graph(loss), shapes(Network::Bert(SIZES)));
    }

    #[test]
    fn vit_is_walked_as_it_is() {
        let config = VitConfig {
            hidden_size: SIZES.size,
            num_hidden_layers: SIZES.blocks,
            num_attention_heads: SIZES.heads,
            intermediate_size: SIZES.inner,
            image_size: 4,
            patch_size: SIZES.patch,
            ..VitConfig::default()
        };
        let weights = VarMap::new();
        let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
        let layout = VitLayout::HuggingFace;
        let model = Vit::with_layout(&config, layout, &DropoutRng::new(1), vb.clone()).unwrap();
        let head = linear(SIZES.size, SIZES.classes, vb.pp("classifier")).unwrap();
        let images = Tensor::zeros((SIZES.batch, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let labels = Tensor::new(&[0u32, 2], &Device::Cpu).unwrap();
        let loss = || {
            let logits = head.forward(&model.forward(&images, true).unwrap()).unwrap();
            cross_entropy(&logits, &labels).unwrap()
        };
        assert_eq!(graph(loss), shapes(Network::Vit(SIZES)));
    }

    #[test]
    fn llama_is_walked_as_it_is() {
        let config = LlamaConfig {
            vocab_size: SIZES.vocabulary,
            hidden_size: 16,
            num_hidden_layers: SIZES.blocks,
            num_attention_heads: SIZES.heads,
            num_key_value_heads: Some(2),
            intermediate_size: SIZES.inner,
            tie_word_embeddings: true,
            ..LlamaConfig::default()
        };
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let lora = LoraConfig { rank: 3, targets: all.map(str::to_owned).to_vec(), ..LoraConfig::default() };
        let factors = VarMap::new();
        // Constants, as frozen weights are.
        let frozen = VarBuilder::zeros(DType::F32, &Device::Cpu);
        let model = Llama::with_lora(&config, &lora, &VarFactors::new(frozen, &factors)).unwrap();
        let ids = Tensor::zeros((SIZES.batch, SIZES.length), DType::U32, &Device::Cpu).unwrap();
        let loss = || model.loss(&ids, &ids.ones_like().unwrap(), true).unwrap();
        let sizes = Sizes { size: 16, ..SIZES };
        assert_eq!(graph(loss), shapes(Network::Llama { sizes, groups: 2, rank: 3 }));
    }
}
