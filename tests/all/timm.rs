//! A checkpoint that timm wrote, against what timm makes of it.

use cab_extract::teacher::vit::Vit;
use cab_extract::teacher::weights::TeacherFiles;
use cab_pipelines::recipe::Precision;
use tch::Device;

use crate::support::{assert_close, fixtures, read_safetensors};

#[test]
fn timm_checkpoint_gives_timms_q_k_and_logits_at_three_input_sizes() {
    let folder = fixtures().join("timm");
    let (expect, _) = read_safetensors(&folder.join("expect.safetensors"));
    let files = TeacherFiles::open(folder.to_str().expect("UTF-8"), None).expect("timm's checkpoint loads");
    let weights = files.tensors().expect("float weights");
    for (size, suffix) in [(24, ""), (40, "_40"), (16, "_16")] {
        let config = if suffix.is_empty() {
            files.config.clone()
        } else {
            files.config.with_img_size([size, size]).expect("a size")
        };
        let teacher = Vit::new(&config, &weights, Precision::F32, Device::Cpu).expect("a model");
        let captured = teacher.forward(&expect[&format!("input{suffix}")], &[0, 1]);
        assert_close(&captured.logits, &expect[&format!("logits{suffix}")], 1e-5, &format!("logits at {size}"));
        for layer in 0..2 {
            for (letter, found) in [("q", &captured.q[layer]), ("k", &captured.k[layer])] {
                let what = format!("{letter}{suffix}.{layer}");
                assert_close(found, &expect[&what], 1e-5, &what);
            }
        }
    }
}
