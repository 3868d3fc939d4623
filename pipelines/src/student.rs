//! The numbers of a Vision Mamba student: sizes and presets.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nearest::unknown;
use crate::teacher::VitConfig;
use crate::{Error, Result};

/// Named widths and depths of a Vision Mamba.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Preset {
    /// 64 wide, 6 deep: for small grey images.
    #[serde(rename = "vim-nano")]
    Nano,
    /// 192 wide, 24 deep.
    #[serde(rename = "vim-tiny")]
    Tiny,
    /// 384 wide, 24 deep.
    #[serde(rename = "vim-small")]
    Small,
    /// 768 wide, 24 deep.
    #[serde(rename = "vim-base")]
    Base,
}

impl Preset {
    /// Every preset, smallest first.
    pub const ALL: [Self; 4] = [Self::Nano, Self::Tiny, Self::Small, Self::Base];

    /// The name by which it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nano => "vim-nano",
            Self::Tiny => "vim-tiny",
            Self::Small => "vim-small",
            Self::Base => "vim-base",
        }
    }

    /// `d_model`.
    pub fn d_model(self) -> usize {
        match self {
            Self::Nano => 64,
            Self::Tiny => 192,
            Self::Small => 384,
            Self::Base => 768,
        }
    }

    /// Number of layers.
    pub fn depth(self) -> usize {
        if self == Self::Nano { 6 } else { 24 }
    }
}

impl Preset {
    /// The preset that suits a teacher when none is asked for, by width: the widest that is no wider than the teacher, `vim-nano` at least.
    pub fn suited(teacher: &VitConfig) -> Self {
        Self::ALL.into_iter().rfind(|preset| preset.d_model() <= teacher.embed_dim).unwrap_or(Self::Nano)
    }
}

impl FromStr for Preset {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownName`] with the nearest known name.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|preset| preset.name() == name);
        found.ok_or_else(|| unknown("student", name, &Self::ALL.map(Self::name)))
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The sizes of a Vision Mamba.
///
/// # Source
/// Vision Mamba (arXiv 2401.09417); the sizes' names are those of Mamba (arXiv 2312.00752).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VimConfig {
    /// Width of a token.
    pub d_model: usize,
    /// Number of layers.
    pub depth: usize,
    /// State size per inner channel: the width of `b` and `c`.
    pub d_state: usize,
    /// `d_inner / d_model`.
    pub expand: usize,
    /// Width of the causal convolution.
    pub d_conv: usize,
    /// Side of a square patch.
    pub patch: usize,
    /// Distance between patches, down and across.
    pub stride: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Number of logits.
    pub classes: usize,
}

impl VimConfig {
    /// A preset whose tokens lie where the teacher's do: patch and stride are the teacher's patch, `image` divided by `teacher_grid`.
    /// `d_state` is 16, `expand` 2, `d_conv` 4.
    ///
    /// | argument | unit | order |
    /// |---|---|---|
    /// | `image` | pixels | height, width |
    /// | `teacher_grid` | patches | down, across |
    ///
    /// # Errors
    /// [`Error::Student`] when the image does not divide into such a grid of square patches, or another number is out of range.
    pub fn for_teacher(
        preset: Preset,
        image: [usize; 2],
        channels: usize,
        classes: usize,
        teacher_grid: [usize; 2],
    ) -> Result<Self> {
        let [height, width] = image;
        let [down, across] = teacher_grid;
        let square =
            down > 0 && across > 0 && height % down == 0 && width % across == 0 && height / down == width / across;
        if !square {
            let expected = format!("an image of {height} x {width} pixels that divides into square patches");
            return Err(Error::Student {
                field: "patch-size",
                expected,
                found: format!("a teacher with {down} x {across} patches"),
            });
        }
        let patch = height / down;
        let (d_model, depth) = (preset.d_model(), preset.depth());
        let config = Self {
            d_model,
            depth,
            d_state: 16,
            expand: 2,
            d_conv: 4,
            patch,
            stride: patch,
            height,
            width,
            channels,
            classes,
        };
        config.check()?;
        Ok(config)
    }

    /// `Ok` when the numbers are those of a student that can run.
    ///
    /// # Errors
    /// [`Error::Student`] naming the first that is not.
    pub fn check(&self) -> Result<()> {
        // Bounds far above every published model: they keep products of sizes from overflowing.
        for (field, value, max) in [
            ("d-model", self.d_model, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("d-state", self.d_state, 1 << 10),
            ("expand", self.expand, 16),
            ("d-conv", self.d_conv, 64),
            ("height", self.height, 1 << 14),
            ("width", self.width, 1 << 14),
            ("patch-size", self.patch, 1 << 10),
            ("classes", self.classes, 1 << 24),
        ] {
            if !(1..=max).contains(&value) {
                return Err(Error::Student { field, expected: format!("1 to {max}"), found: value.to_string() });
            }
        }
        if !matches!(self.channels, 1 | 3) {
            return Err(Error::Student {
                field: "channels",
                expected: "1 or 3".into(),
                found: self.channels.to_string(),
            });
        }
        let side = self.height.min(self.width);
        if self.patch > side {
            let expected = format!("at most {side}, the image's shorter side");
            return Err(Error::Student { field: "patch-size", expected, found: self.patch.to_string() });
        }
        // A stride beyond the patch would leave pixels that no token sees.
        if !(1..=self.patch).contains(&self.stride) {
            let expected = format!("1 to {}, the patch size", self.patch);
            return Err(Error::Student { field: "stride", expected, found: self.stride.to_string() });
        }
        Ok(())
    }

    /// Patches down and across.
    ///
    /// # Panics
    /// As all sizes below, on numbers that [`check`](Self::check) refuses.
    pub fn grid(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| (side - self.patch) / self.stride + 1)
    }

    /// Number of patches.
    pub fn n_patches(&self) -> usize {
        self.grid().iter().product()
    }

    /// Number of tokens: the patches and the class token.
    pub fn tokens(&self) -> usize {
        self.n_patches() + 1
    }

    /// Position of the class token, in the middle: `n_patches / 2`.
    pub fn class_position(&self) -> usize {
        self.n_patches() / 2
    }

    /// Inner channels, `expand * d_model`.
    pub fn d_inner(&self) -> usize {
        self.expand * self.d_model
    }

    /// Width of the low-rank `dt`, `ceil(d_model / 16)`.
    pub fn dt_rank(&self) -> usize {
        self.d_model.div_ceil(16)
    }

    /// `Ok` when the student's tokens are the teacher's, patch by patch, which the bridge needs.
    ///
    /// # Errors
    /// [`Error::Student`] when the grids differ.
    pub fn check_grid(&self, teacher_grid: [usize; 2]) -> Result<()> {
        let grid = self.grid();
        if grid == teacher_grid {
            return Ok(());
        }
        let [down, across] = teacher_grid;
        let expected = format!("one that gives the teacher's {down} x {across} patches with this patch size");
        Err(Error::Student {
            field: "stride",
            expected,
            found: format!("{} giving {} x {} patches", self.stride, grid[0], grid[1]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_their_sizes_and_names() {
        for (name, d_model, depth) in
            [("vim-nano", 64, 6), ("vim-tiny", 192, 24), ("vim-small", 384, 24), ("vim-base", 768, 24)]
        {
            let preset: Preset = name.parse().unwrap();
            assert_eq!((preset.d_model(), preset.depth(), preset.to_string()), (d_model, depth, name.to_owned()));
            assert_eq!(serde_json::to_string(&preset).unwrap(), format!("\"{name}\""));
        }
        assert!("vim-tinny".parse::<Preset>().unwrap_err().to_string().contains("did you mean `vim-tiny`"));
    }

    #[test]
    fn the_suited_preset_follows_the_teachers_width() {
        let teacher = crate::teacher::VitConfig::parse(r#"{"architecture": "deit_small_patch16_224"}"#, "").unwrap();
        for (embed_dim, name) in [
            (32, "vim-nano"),
            (64, "vim-nano"),
            (192, "vim-tiny"),
            (384, "vim-small"),
            (768, "vim-base"),
            (1024, "vim-base"),
        ] {
            let teacher = VitConfig { embed_dim, ..teacher.clone() };
            assert_eq!(Preset::suited(&teacher).name(), name);
        }
        assert_eq!("vim-nano".parse::<Preset>().unwrap().depth(), 6);
        assert!("vim".parse::<Preset>().is_err());
    }

    #[test]
    fn the_token_grid_is_the_teachers() {
        let tiny = VimConfig::for_teacher(Preset::Tiny, [224, 224], 3, 1000, [14, 14]).unwrap();
        assert_eq!((tiny.patch, tiny.stride, tiny.tokens(), tiny.class_position()), (16, 16, 197, 98));
        assert_eq!((tiny.d_inner(), tiny.dt_rank(), tiny.d_state, tiny.d_conv), (384, 12, 16, 4));
        let wide = VimConfig::for_teacher(Preset::Nano, [28, 56], 1, 10, [4, 8]).unwrap();
        assert_eq!((wide.grid(), wide.tokens(), wide.dt_rank()), ([4, 8], 33, 4));
        wide.check_grid([4, 8]).unwrap();
        for (image, grid) in [([28, 28], [3, 3]), ([28, 28], [4, 7]), ([28, 28], [0, 0])] {
            assert!(
                VimConfig::for_teacher(Preset::Nano, image, 1, 10, grid)
                    .unwrap_err()
                    .to_string()
                    .contains("patch-size")
            );
        }
    }

    #[test]
    fn overlapping_patches_count_by_the_stride() {
        let base = VimConfig::for_teacher(Preset::Tiny, [224, 224], 3, 10, [14, 14]).unwrap();
        let dense = VimConfig { stride: 8, ..base.clone() };
        assert_eq!((dense.grid(), dense.tokens()), ([27, 27], 730));
        assert!(dense.check_grid(base.grid()).unwrap_err().to_string().contains("27 x 27"));
    }

    #[test]
    fn every_number_is_checked() {
        let good = VimConfig::for_teacher(Preset::Nano, [28, 28], 1, 10, [4, 4]).unwrap();
        for (bad, field) in [
            (VimConfig { d_model: 0, ..good.clone() }, "d-model"),
            (VimConfig { depth: usize::MAX, ..good.clone() }, "depth"),
            (VimConfig { d_state: 0, ..good.clone() }, "d-state"),
            (VimConfig { expand: 0, ..good.clone() }, "expand"),
            (VimConfig { d_conv: 0, ..good.clone() }, "d-conv"),
            (VimConfig { height: 0, ..good.clone() }, "height"),
            (VimConfig { width: 0, ..good.clone() }, "width"),
            (VimConfig { patch: 29, ..good.clone() }, "patch-size"),
            (VimConfig { stride: 0, ..good.clone() }, "stride"),
            (VimConfig { stride: 8, ..good.clone() }, "stride"),
            (VimConfig { channels: 2, ..good.clone() }, "channels"),
            (VimConfig { classes: 0, ..good.clone() }, "classes"),
        ] {
            let text = bad.check().unwrap_err().to_string();
            assert!(text.contains(&format!("`{field}`")), "{text}");
        }
    }

    #[test]
    fn configurations_are_strict_json() {
        let config = VimConfig::for_teacher(Preset::Nano, [28, 28], 1, 10, [4, 4]).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VimConfig>(&json).unwrap(), config);
        assert!(serde_json::from_str::<VimConfig>(&json.replace("d_conv", "d_konv")).is_err());
    }
}
