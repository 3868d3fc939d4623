use std::collections::HashMap;

use super::*;

const FILE: &str = "config.json";

/// As timm writes it for a model whose sizes were given by hand.
const NANO: &str = r#"{"architecture": "vit_tiny_patch16_224", "num_classes": 10, "num_features": 96, "global_pool": "token",
    "model_args": {"img_size": [28, 28], "patch_size": 7, "in_chans": 1, "embed_dim": 96, "depth": 6, "num_heads": 3, "num_classes": 10, "global_pool": "token"},
    "pretrained_cfg": {"tag": "x", "custom_load": false, "input_size": [1, 28, 28], "fixed_input_size": true, "interpolation": "bicubic", "crop_pct": 0.9,
        "crop_mode": "center", "mean": [0.5], "std": [0.25], "num_classes": 10, "pool_size": null, "first_conv": "patch_embed.proj", "classifier": "head"}}"#;

/// As the hub has it for the DeiT of the paper.
const DEIT: &str = r#"{"architecture": "deit_small_patch16_224", "num_classes": 1000, "num_features": 384,
    "pretrained_cfg": {"tag": "fb_in1k", "input_size": [3, 224, 224], "fixed_input_size": true, "interpolation": "bicubic", "crop_pct": 0.9,
        "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000, "pool_size": null}}"#;

fn parse(text: &str) -> VitConfig {
    VitConfig::parse(text, FILE).unwrap()
}

fn message(text: &str) -> String {
    VitConfig::parse(text, FILE).unwrap_err().to_string()
}

#[test]
fn timm_configurations_are_read() {
    let nano = parse(NANO);
    assert_eq!((nano.img_size, nano.patch, nano.in_chans, nano.num_classes), ([28, 28], 7, 1, 10));
    assert_eq!((nano.embed_dim, nano.depth, nano.heads, nano.head_dim(), nano.mlp_dim()), (96, 6, 3, 32, 384));
    assert_eq!((nano.grid(), nano.n_patches(), nano.tokens()), ([4, 4], 16, 17));
    assert_eq!(
        (nano.mean, nano.std, nano.crop_pct, nano.interpolation),
        (vec![0.5], vec![0.25], 0.9, Interpolation::Bicubic)
    );

    let deit = parse(DEIT);
    assert_eq!((deit.img_size, deit.patch, deit.embed_dim, deit.depth, deit.heads), ([224, 224], 16, 384, 12, 6));
    assert_eq!((deit.tokens(), deit.num_classes, deit.mean[2]), (197, 1000, 0.406));

    let old = r#"{"architecture": "vit_base_patch32_384", "num_classes": 7, "input_size": [3, 384, 384], "mean": [0.5, 0.5, 0.5], "std": 0.5, "interpolation": "bilinear"}"#;
    let old = parse(old);
    assert_eq!(
        (old.num_classes, old.tokens(), old.std, old.interpolation),
        (7, 145, vec![0.5; 3], Interpolation::Bilinear)
    );
    // Nothing but a name: timm's defaults.
    let bare = parse(r#"{"architecture": "vit_tiny_patch16_384"}"#);
    assert_eq!((bare.img_size, bare.crop_pct, bare.mean[0], bare.num_classes), ([384, 384], 0.875, 0.485, 1000));
}

#[test]
fn arguments_win_over_the_pretrained_configuration() {
    let text = DEIT.replace(
        "\"pretrained_cfg\"",
        r#""model_args": {"img_size": 384, "num_classes": 5, "in_chans": 1}, "pretrained_cfg""#,
    );
    let config = parse(&text);
    assert_eq!((config.img_size, config.num_classes, config.in_chans), ([384, 384], 5, 1));
    // Three means for one channel are averaged.
    assert!((config.mean[0] - 0.449).abs() < 1e-12 && config.mean.len() == 1);
}

#[test]
fn every_known_architecture_has_sizes() {
    for name in ARCHITECTURES {
        let config = parse(&format!(r#"{{"architecture": "{name}"}}"#));
        assert_eq!(config.architecture, name);
        assert_eq!(config.head_dim(), if name.contains("huge") { 80 } else { 64 }, "{name}");
        assert!(name.contains(&format!("patch{}_{}", config.patch, config.img_size[0])));
    }
}

#[test]
fn an_unknown_architecture_needs_every_size() {
    let text = message(r#"{"architecture": "vit_smal_patch16_224"}"#);
    assert!(text.contains("did you mean `vit_small_patch16_224`") && text.contains("vit_base_patch8_224"), "{text}");
    let stated = r#"{"architecture": "mine", "model_args": {"patch_size": 8, "embed_dim": 320, "depth": 3, "num_heads": 5, "img_size": 40}}"#;
    assert_eq!(parse(stated).tokens(), 26);
    assert!(message(&stated.replace(", \"img_size\": 40", "")).contains("model_args.img_size"));
    assert!(message(&stated.replace("\"depth\": 3, ", "")).contains("`mine` is not known"));
}

/// Each option of a plain ViT passes at its plain value and is refused by name at any other.
#[test]
fn options_that_change_the_forward_are_refused_by_name() {
    let with =
        |key: &str, value: &str| NANO.replace("\"img_size\": [28", &format!("\"{key}\": {value}, \"img_size\": [28"));
    for (key, plain, other) in [
        ("qkv_bias", "true", "false"),
        ("qk_norm", "false", "true"),
        ("scale_attn_norm", "false", "true"),
        ("scale_mlp_norm", "false", "true"),
        ("proj_bias", "true", "false"),
        ("init_values", "null", "0.1"),
        ("class_token", "true", "false"),
        ("pos_embed", "\"learn\"", "\"none\""),
        ("no_embed_class", "false", "true"),
        ("reg_tokens", "0", "4"),
        ("pre_norm", "false", "true"),
        ("final_norm", "true", "false"),
        ("fc_norm", "null", "true"),
        ("pool_include_prefix", "false", "true"),
        ("dynamic_img_pad", "false", "true"),
        ("distilled", "false", "true"),
        ("embed_layer", "null", "\"x\""),
        ("embed_norm_layer", "null", "\"x\""),
        ("norm_layer", "null", "\"rmsnorm\""),
        ("act_layer", "\"gelu\"", "\"quick_gelu\""),
        ("block_fn", "null", "\"x\""),
        ("mlp_layer", "null", "\"swiglu\""),
        ("attn_layer", "null", "\"x\""),
    ] {
        parse(&with(key, plain));
        let text = message(&with(key, other));
        assert!(text.contains(&format!("`model_args.{key}` = {other}")), "{text}");
    }
    parse(&with("drop_path_rate", "0.1"));
    assert!(message(&with("brand_new", "1")).contains("`model_args.brand_new`"));
    assert!(
        message(&NANO.replace("\"global_pool\": \"token\"", "\"global_pool\": \"avg\""))
            .contains("global_pool` = \"avg\"")
    );
    assert!(message(&NANO.replace("\"center\"", "\"squash\"")).contains("`pretrained_cfg.crop_mode` = \"squash\""));
    assert!(message(&NANO.replace("\"bicubic\"", "\"random\"")).contains("`pretrained_cfg.interpolation`"));
}

#[test]
fn wrong_numbers_are_named() {
    for (from, to, field) in [
        ("\"depth\": 6", "\"depth\": 0", "depth"),
        ("\"depth\": 6", "\"depth\": \"six\"", "depth"),
        ("\"depth\": 6", "\"depth\": 6.5", "depth"),
        ("\"num_heads\": 3", "\"num_heads\": 5", "num_heads"),
        ("[28, 28]", "[28, 30]", "img_size"),
        ("[28, 28]", "[28]", "img_size"),
        ("\"patch_size\": 7", "\"patch_size\": [7, 14]", "patch_size"),
        ("\"in_chans\": 1", "\"in_chans\": 4", "in_chans"),
        ("\"num_classes\": 10", "\"num_classes\": 0", "num_classes"),
        ("\"mean\": [0.5]", "\"mean\": [\"a\"]", "mean"),
        ("\"std\": [0.25]", "\"std\": [0]", "std"),
        ("\"crop_pct\": 0.9", "\"crop_pct\": 90", "crop_pct"),
        ("[1, 28, 28]", "[28, 28]", "input_size"),
        ("\"embed_dim\": 96", "\"embed_dim\": 1e300", "embed_dim"),
        ("\"pretrained_cfg\": {", "\"pretrained_cfg\": 3, \"x\": {", "pretrained_cfg"),
        ("\"architecture\": \"vit_tiny_patch16_224\"", "\"architecture\": 1", "architecture"),
    ] {
        let text = message(&NANO.replace(from, to));
        assert!(text.starts_with(FILE) && text.contains(&format!("{field}`")), "{field}: {text}");
    }
    assert!(message("[1]").contains("not the expected JSON"));
    assert!(message(&NANO[..100]).contains("line"));
    for end in 0..NANO.len() {
        assert!(VitConfig::parse(&NANO[..end], FILE).is_err(), "cut at {end}");
    }
}

/// Shapes of a plain ViT.
fn shapes(config: &VitConfig) -> HashMap<String, Vec<usize>> {
    let (dim, mlp) = (config.embed_dim, config.mlp_dim());
    let mut all = HashMap::from([
        ("cls_token".to_owned(), vec![1, 1, dim]),
        ("pos_embed".to_owned(), vec![1, config.tokens(), dim]),
        ("patch_embed.proj.weight".to_owned(), vec![dim, config.in_chans, config.patch, config.patch]),
        ("patch_embed.proj.bias".to_owned(), vec![dim]),
        ("norm.weight".to_owned(), vec![dim]),
        ("norm.bias".to_owned(), vec![dim]),
        ("head.weight".to_owned(), vec![config.num_classes, dim]),
        ("head.bias".to_owned(), vec![config.num_classes]),
    ]);
    for block in 0..config.depth {
        for (name, shape) in [
            ("norm1.weight", vec![dim]),
            ("norm1.bias", vec![dim]),
            ("attn.qkv.weight", vec![3 * dim, dim]),
            ("attn.qkv.bias", vec![3 * dim]),
            ("attn.proj.weight", vec![dim, dim]),
            ("attn.proj.bias", vec![dim]),
            ("norm2.weight", vec![dim]),
            ("norm2.bias", vec![dim]),
            ("mlp.fc1.weight", vec![mlp, dim]),
            ("mlp.fc1.bias", vec![mlp]),
            ("mlp.fc2.weight", vec![dim, mlp]),
            ("mlp.fc2.bias", vec![dim]),
        ] {
            all.insert(format!("blocks.{block}.{name}"), shape);
        }
    }
    all
}

#[test]
fn weights_must_have_the_shapes_of_the_configuration() {
    let config = parse(NANO);
    let good = shapes(&config);
    config.check_weights(|name| good.get(name).cloned()).unwrap();
    for name in good.keys() {
        let missing = |asked: &str| good.get(asked).filter(|_| asked != name).cloned();
        let text = config.check_weights(missing).unwrap_err().to_string();
        assert!(text.contains(&format!("`{name}`")) && text.contains("no such tensor"), "{text}");
        let longer =
            |asked: &str| good.get(asked).map(|s| if asked == name { [&s[..], &[1]].concat() } else { s.clone() });
        assert!(config.check_weights(longer).unwrap_err().to_string().contains(&format!("`{name}`")));
    }
    let shallow = VitConfig { depth: 5, ..config.clone() };
    assert!(shallow.check_weights(|name| good.get(name).cloned()).unwrap_err().to_string().contains("blocks.5"));
    for extra in [
        "dist_token",
        "reg_token",
        "norm_pre.weight",
        "fc_norm.weight",
        "blocks.0.ls1.gamma",
        "blocks.5.ls2.gamma",
        "blocks.3.attn.q_norm.weight",
    ] {
        let text = config
            .check_weights(|name| if name == extra { Some(vec![1]) } else { good.get(name).cloned() })
            .unwrap_err()
            .to_string();
        assert!(text.contains(&format!("`{extra}` belongs to")), "{text}");
    }
}

#[test]
fn a_configuration_is_inferred_from_shapes() {
    for text in [NANO, DEIT, r#"{"architecture": "vit_large_patch14_224"}"#] {
        let config = VitConfig { mlp_ratio: 44.0 / 11.0, ..parse(text) };
        let all = shapes(&config);
        let inferred = VitConfig::infer(|name| all.get(name).cloned(), Some(config.heads)).unwrap();
        let same = VitConfig {
            architecture: "inferred".into(),
            mean: inferred.mean.clone(),
            std: inferred.std.clone(),
            ..config.clone()
        };
        assert_eq!(inferred, VitConfig { crop_pct: 0.9, ..same });
        if text == DEIT {
            assert_eq!(VitConfig::infer(|name| all.get(name).cloned(), None).unwrap().heads, 6);
        }
        assert!(
            VitConfig::infer(|name| all.get(name).cloned(), Some(7)).unwrap_err().to_string().contains("num_heads")
        );
    }
    let all = shapes(&parse(NANO));
    let bent = |tensor: &'static str, shape: &[usize]| {
        let shape = shape.to_vec();
        VitConfig::infer(|name| if name == tensor { Some(shape.clone()) } else { all.get(name).cloned() }, Some(3))
            .unwrap_err()
            .to_string()
    };
    assert!(bent("pos_embed", &[1, 16, 96]).contains("square of patches"));
    assert!(bent("pos_embed", &[]).contains("pos_embed"));
    assert!(bent("patch_embed.proj.weight", &[96, 1, 7]).contains("patch_embed"));
    assert!(bent("patch_embed.proj.weight", &[0, 1, 7, 7]).contains("patch_embed"));
    assert!(bent("patch_embed.proj.weight", &[96, usize::MAX, 7, 7]).contains("in_chans"));
    assert!(bent("head.weight", &[]).contains("num_classes"));
    assert!(VitConfig::infer(|_| None, None).unwrap_err().to_string().contains("patch_embed"));
}

#[test]
fn another_input_size_must_fit_the_patch() {
    let deit = parse(DEIT);
    assert_eq!(deit.with_img_size([384, 320]).unwrap().grid(), [24, 20]);
    assert!(deit.with_img_size([200, 200]).unwrap_err().to_string().contains("multiples of the patch, 16"));
}

#[test]
fn teacher_names_resolve() {
    let hub = |repo: &str| TeacherSpec::Hub { repo: repo.into() };
    for (name, repo) in TEACHERS {
        assert_eq!(TeacherSpec::parse(name).unwrap(), if name == "vit-nano" { TeacherSpec::Nano } else { hub(repo) });
    }
    assert_eq!(TeacherSpec::parse("hf-hub:timm/vit_x.y").unwrap(), hub("timm/vit_x.y"));
    assert_eq!(TeacherSpec::parse("timm/vit_x.y").unwrap(), hub("timm/vit_x.y"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    assert!(
        TeacherSpec::parse(file.to_str().unwrap()).unwrap_err().to_string().contains("model.safetensors: cannot read")
    );
    std::fs::write(&file, b"").unwrap();
    assert_eq!(TeacherSpec::parse(file.to_str().unwrap()).unwrap(), TeacherSpec::File(file));
    assert_eq!(TeacherSpec::parse(dir.path().to_str().unwrap()).unwrap(), TeacherSpec::Dir(dir.path().into()));
    let text = TeacherSpec::parse("deit-x").unwrap_err().to_string();
    assert!(text.contains("did you mean `deit-") && text.contains("vit-l"), "{text}");
    for odd in ["", "../no-such-folder", "a/b/c", "./model", "x.safetensors", "a /b"] {
        assert!(TeacherSpec::parse(odd).is_err(), "{odd}");
    }
}

#[test]
fn the_embedded_teacher_is_what_its_configuration_says() {
    let config = VitConfig::parse(crate::assets::VIT_NANO_CONFIG, "vit-nano.json").unwrap();
    assert_eq!((config.img_size, config.in_chans, config.num_classes), ([28, 28], 1, 10));
    assert_eq!(config.crop_pct, 1.0);
    // The header of a safetensors file: its length, then JSON.
    let (length, rest) = crate::assets::VIT_NANO_WEIGHTS.split_first_chunk::<8>().unwrap();
    let header: serde_json::Value = serde_json::from_slice(&rest[..u64::from_le_bytes(*length) as usize]).unwrap();
    let shapes = |name: &str| {
        let shape = header.get(name)?.get("shape")?.as_array()?;
        Some(shape.iter().map(|side| side.as_u64().unwrap() as usize).collect())
    };
    config.check_weights(shapes).unwrap();
    let inferred = VitConfig::infer(shapes, Some(config.heads)).unwrap();
    assert_eq!((inferred.patch, inferred.depth, inferred.mlp_dim()), (config.patch, config.depth, config.mlp_dim()));
}

#[test]
fn configurations_are_strict_json() {
    let config = parse(NANO);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VitConfig>(&json).unwrap(), config);
    assert!(serde_json::from_str::<VitConfig>(&json.replacen('{', "{\"qk_norm\":true,", 1)).is_err());
}
