//! What the options of an adapter mean for what it computes.

use serde_json::Value;

/// What to do about an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is computed here, or changes nothing of what a saved adapter computes.
    Known,
    /// It makes an adapter something else than this module computes.
    Unsupported,
    /// Nobody here knows.
    Unknown,
}

/// Options that are read, and those that say how an adapter was found, initialized or stored.
const KNOWN: [&str; 24] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",
];

/// Options that change what an adapter computes, unless they are off.
const UNSUPPORTED: [&str; 15] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
];

pub(super) fn judge(option: &str, value: &Value) -> Verdict {
    let supported = |fits: bool| if fits { Verdict::Known } else { Verdict::Unsupported };
    match option {
        "peft_type" => supported(value == "LORA"),
        "bias" => supported(value.is_null() || value == "none"),
        "init_lora_weights" => initialization(value),
        known if KNOWN.contains(&known) => Verdict::Known,
        known if UNSUPPORTED.contains(&known) => supported(is_off(value)),
        // PEFT writes all of its options: what is off had no effect.
        _ if is_off(value) => Verdict::Known,
        _ => Verdict::Unknown,
    }
}

/// Some ways to initialize factors change the base weights as well.
fn initialization(value: &Value) -> Verdict {
    let Some(init) = value.as_str() else { return Verdict::Known };
    let base_changing = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    if base_changing.iter().any(|prefix| init.starts_with(prefix)) {
        Verdict::Unsupported
    } else if ["gaussian", "eva", "orthogonal", "true", "false"].contains(&init) {
        Verdict::Known
    } else {
        Verdict::Unknown
    }
}

pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_judged_by_what_they_change() {
        for (option, value, verdict) in [
            ("peft_type", json!("LORA"), Verdict::Known),
            ("peft_type", json!("IA3"), Verdict::Unsupported),
            ("use_rslora", json!(true), Verdict::Known),
            ("layers_to_transform", json!([1]), Verdict::Known),
            ("use_dora", json!(false), Verdict::Known),
            ("use_dora", json!(true), Verdict::Unsupported),
            ("lora_bias", json!(true), Verdict::Unsupported),
            ("rank_pattern", json!({}), Verdict::Known),
            ("alpha_pattern", json!({"q": 4}), Verdict::Unsupported),
            ("init_lora_weights", json!(true), Verdict::Known),
            ("init_lora_weights", json!("gaussian"), Verdict::Known),
            ("init_lora_weights", json!("pissa_niter_4"), Verdict::Unsupported),
            ("init_lora_weights", json!("of_next_year"), Verdict::Unknown),
            ("some_new_scaling", json!(2.0), Verdict::Unknown),
            ("some_new_switch", json!(true), Verdict::Unknown),
            ("some_new_switch", json!(false), Verdict::Known),
            ("some_new_list", json!([]), Verdict::Known),
        ] {
            assert_eq!(judge(option, &value), verdict, "{option} {value}");
        }
    }
}
