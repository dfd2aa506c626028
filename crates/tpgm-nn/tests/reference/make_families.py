"""Writes `families.safetensors`, what transformers and timm compute with tiny models of many kinds:
`python make_families.py`, PyTorch 1.13 or later, transformers 4.48, timm 1.0.

Keys are as in `make_reference.py`, and `model/config` is the `config.json`, as bytes. Weights and images are f32, all else is
computed from them in f64.
"""

import json
import math
from pathlib import Path

import timm.layers
import torch
import transformers as hf
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

torch.manual_seed(0)
timm.layers.set_fused_attn(False)
found = {}


def prepare(model):
    """Random values that f32 holds exactly, in a model of f64."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            x = torch.randn(value.shape) * (0.5 if value.ndim != 2 else value.shape[1] ** -0.5)
            value.copy_(x + 1 if value.ndim == 1 and name.endswith("weight") else x)
    return model.double().eval()


def record(name, weights, config=None, **tensors):
    for key, value in weights.items():
        found[f"{name}/weights/{key}"] = value.float().clone().contiguous()
    if config is not None:
        found[f"{name}/config"] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
    for key, value in tensors.items():
        kept = value.float() if key == "images" else value
        found[f"{name}/{key}"] = kept.detach().clone().contiguous()


# Text: three sequences of 7, 3 and 5 tokens, the last padded in front.

PAD = 1
ids = torch.tensor([[0, 5, 22, 7, 2, 9, 3], [0, 8, 2, PAD, PAD, PAD, PAD], [PAD, PAD, 4, 4, 11, 2, 6]])
text = dict(vocab_size=23, pad_token_id=PAD)
bert = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, max_position_embeddings=9,
            type_vocab_size=1, layer_norm_eps=1e-5, **text)


def encoder(name, model):
    mask = (ids != PAD).long()
    with torch.no_grad():
        tokens = prepare(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    record(name, weights, json.loads(model.config.to_json_string()), ids=ids, mask=mask, tokens=tokens)


encoder("roberta", hf.RobertaModel(hf.RobertaConfig(**bert), add_pooling_layer=False))
encoder("xlm_roberta", hf.XLMRobertaModel(hf.XLMRobertaConfig(**bert), add_pooling_layer=False))
encoder("camembert", hf.CamembertModel(hf.CamembertConfig(**bert), add_pooling_layer=False))
distil = dict(dim=12, n_layers=2, n_heads=3, hidden_dim=20, max_position_embeddings=9, **text)
encoder("distilbert", hf.DistilBertModel(hf.DistilBertConfig(**distil, attn_implementation="eager")))

# Images, in Hugging Face's names

images = torch.randn(2, 3, 6, 6).double()
vit = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, image_size=6, patch_size=3,
           attn_implementation="eager")


def hugging_face(name, model):
    images_f64 = images.float().double()
    with torch.no_grad():
        tokens = prepare(model)(images_f64).last_hidden_state
    record(name, model.state_dict(), json.loads(model.config.to_json_string()), images=images, tokens=tokens)


hugging_face("dinov2", hf.Dinov2Model(hf.Dinov2Config(mlp_ratio=2, **vit)))
hugging_face("dinov2_swiglu", hf.Dinov2Model(hf.Dinov2Config(mlp_ratio=2, use_swiglu_ffn=True, **vit)))
registers = hf.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=2, **vit)
hugging_face("dinov2_registers", hf.Dinov2WithRegistersModel(registers))

# Images, in timm's names


def timm_vit(name, **options):
    model = VisionTransformer(img_size=6, patch_size=3, embed_dim=12, depth=2, num_heads=3, num_classes=0,
                              **{"mlp_ratio": 2, **options})
    with torch.no_grad():
        tokens = prepare(model).forward_features(images.float().double())
    record(name, model.state_dict(), images=images, tokens=tokens)


timm_vit("timm_scaled", init_values=1e-5)
timm_vit("timm_qk_norm", qk_norm=True)
timm_vit("timm_registers", init_values=1e-5, reg_tokens=2, no_embed_class=True)
timm_vit("timm_registers_embedded", reg_tokens=2)
timm_vit("timm_swiglu", init_values=1e-5, mlp_ratio=4, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU)
timm_vit("timm_pre_norm", pre_norm=True)

# DINOv2's own names, which timm converts into its own

def original(name, swiglu, count):
    mlp = dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=4) if swiglu else dict(mlp_ratio=2)
    model = prepare(VisionTransformer(img_size=6, patch_size=3, embed_dim=12, depth=2, num_heads=3, num_classes=0,
                                      init_values=1e-5, reg_tokens=count, no_embed_class=count > 0, **mlp))
    weights = dict(model.state_dict())
    weights["mask_token"] = torch.randn(1, 12).double()
    if count:
        weights["register_tokens"] = weights.pop("reg_token")
        weights["pos_embed"] = torch.randn(1, 5, 12).double()
    if swiglu:
        for key in list(weights):
            weights[key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = weights.pop(key)
    weights = {key: value.float().double() for key, value in weights.items()}
    model.load_state_dict(checkpoint_filter_fn(dict(weights), model))
    with torch.no_grad():
        tokens = model.forward_features(images.float().double())
    record(name, weights, images=images, tokens=tokens)


original("original_registers", False, 2)
original("original_swiglu", True, 0)

save_file(found, Path(__file__).parent / "families.safetensors")
