use super::*;
use crate::random::sample_key;

fn photo(channels: usize, height: usize, width: usize) -> Image {
    let pixels = (0..height * width * channels).map(|i| ((i * 31 + i / width * 17) % 256) as u8).collect();
    Image::new(channels, height, width, pixels)
}

fn recipe(channels: usize, size: usize, augment: Augment) -> ViewRecipe {
    ViewRecipe {
        channels,
        height: size,
        width: size,
        crop_pct: 0.9,
        interpolation: Interpolation::Bicubic,
        augment,
        views: 4,
        seed: 0,
    }
}

#[test]
fn view_0_of_an_image_of_the_right_size_is_the_image_unless_it_is_cropped() {
    let recipe = |channels, size, augment| ViewRecipe { crop_pct: 1.0, ..recipe(channels, size, augment) };
    let grey = photo(1, 28, 28);
    assert_eq!(recipe(1, 28, Augment::AFFINE).make(&grey, 5, 0), grey.pixels);
    assert_eq!(recipe(3, 28, Augment::CROP).make(&grey, 5, 0), grey.pixels.repeat(3));
    let colour = photo(3, 28, 28);
    let planes = recipe(3, 28, Augment::CROP).make(&colour, 5, 0);
    for (i, pixel) in colour.pixels.chunks(3).enumerate() {
        assert_eq!([planes[i], planes[784 + i], planes[1568 + i]], pixel);
    }
    assert_eq!(recipe(1, 28, Augment::CROP).make(&colour, 5, 0), colour.to_channels(1).pixels);
    let cropped = ViewRecipe { crop_pct: 0.9, ..recipe(1, 28, Augment::AFFINE) };
    assert_ne!(cropped.make(&grey, 5, 0), grey.pixels, "resized to 31, then cut");
}

#[test]
fn views_are_pure_functions_of_seed_sample_and_view() {
    for (image, augment) in [(photo(3, 50, 70), Augment::CROP), (photo(1, 32, 32), Augment::AFFINE)] {
        let recipe = recipe(image.channels, 32, augment);
        let mut seen = std::collections::HashSet::new();
        for sample in ["a.jpg", "b.jpg", "c.jpg"] {
            let key = sample_key(sample);
            for view in 1..5 {
                let pixels = recipe.make(&image, key, view);
                assert_eq!(pixels.len(), recipe.view_bytes());
                assert_eq!(pixels, recipe.make(&image, key, view));
                let more = ViewRecipe { views: 64, ..recipe.clone() };
                assert_eq!(pixels, more.make(&image, key, view), "the number of views does not matter");
                assert!(seen.insert(pixels), "{sample} {view}");
            }
            assert_eq!(recipe.make(&image, key, 0), recipe.make(&image, 0, 0), "view 0 draws nothing");
        }
        let other = ViewRecipe { seed: 1, ..recipe.clone() };
        assert!(!seen.contains(&other.make(&image, sample_key("a.jpg"), 1)));
    }
}

/// The numbers are part of every cache's meaning: if this fails, resumed extractions mix two kinds of views.
#[test]
fn views_stay_what_they_are() {
    let hash = |augment, channels| {
        let recipe = recipe(channels, 24, augment);
        let mut hasher = blake3::Hasher::new();
        for view in 0..6 {
            hasher.update(&recipe.make(&photo(channels, 40, 33), sample_key("n01440764/x.JPEG"), view));
        }
        hasher.finalize().to_hex()[..16].to_owned()
    };
    assert_eq!(hash(Augment::CROP, 3), "5180134504dca634");
    assert_eq!(hash(Augment::AFFINE, 1), "67395e81c86f251f");
}

#[test]
fn half_of_the_crops_are_flipped() {
    // A ramp to the right stays one under every crop and becomes one to the left under a flip.
    let ramp = Image::new(1, 64, 64, (0..64 * 64).map(|i| (i % 64 * 4) as u8).collect());
    let flipped = |flip: f64| {
        let recipe = recipe(1, 16, Augment::Crop { scale: [0.3, 1.0], ratio: [0.75, 1.33], flip });
        (0..4000).filter(|&key| recipe.make(&ramp, key, 1)[0] > recipe.make(&ramp, key, 1)[15]).count()
    };
    assert_eq!(flipped(0.0), 0);
    assert_eq!(flipped(1.0), 4000);
    // Six standard deviations are 190.
    assert!(flipped(0.5).abs_diff(2000) < 190);
}

#[test]
fn a_crop_of_everything_is_the_plain_resize() {
    let image = photo(3, 48, 48);
    let all = recipe(3, 24, Augment::Crop { scale: [1.0, 1.0], ratio: [1.0, 1.0], flip: 0.0 });
    let plain = ViewRecipe { crop_pct: 1.0, ..all.clone() };
    assert_eq!(all.make(&image, 1, 1), plain.make(&image, 1, 0));
}

#[test]
fn odd_images_give_views_of_the_right_size() {
    for (height, width) in [(1, 1), (1, 300), (300, 1), (2, 3), (500, 20)] {
        for channels in [1, 3] {
            let image = photo(channels, height, width);
            for augment in [Augment::CROP, Augment::AFFINE] {
                let recipe = ViewRecipe { height: 20, width: 28, ..recipe(4 - channels, 20, augment) };
                for view in 0..4 {
                    assert_eq!(recipe.make(&image, 9, view).len(), recipe.view_bytes());
                }
            }
        }
    }
}

#[test]
fn recipes_are_strict_json() {
    for augment in [Augment::None, Augment::CROP, Augment::AFFINE] {
        let recipe = recipe(3, 224, augment);
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<ViewRecipe>(&json).unwrap(), recipe);
        let extra = json.replacen('{', "{\"colour\":1,", 1);
        assert!(serde_json::from_str::<ViewRecipe>(&extra).unwrap_err().to_string().contains("colour"));
    }
    let json = serde_json::to_string(&recipe(3, 224, Augment::CROP)).unwrap();
    assert!(json.contains(r#""augment":{"crop":{"scale":[0.08,1.0]"#), "{json}");
    let inner = json.replacen("\"flip\"", "\"flop\"", 1);
    assert!(serde_json::from_str::<ViewRecipe>(&inner).unwrap_err().to_string().contains("flop"));
}

#[test]
fn every_number_is_checked() {
    let good = recipe(3, 224, Augment::CROP);
    good.check().unwrap();
    recipe(1, 28, Augment::AFFINE).check().unwrap();
    ViewRecipe { augment: Augment::None, views: 1, ..good.clone() }.check().unwrap();
    let crop = |scale, ratio, flip| Augment::Crop { scale, ratio, flip };
    let affine = |scale, degrees, shift| Augment::Affine { scale, degrees, shift };
    for (bad, field) in [
        (ViewRecipe { channels: 2, ..good.clone() }, "channels"),
        (ViewRecipe { height: 0, ..good.clone() }, "height"),
        (ViewRecipe { width: 1 << 30, ..good.clone() }, "width"),
        (ViewRecipe { crop_pct: 0.0, ..good.clone() }, "crop_pct"),
        (ViewRecipe { crop_pct: f64::NAN, ..good.clone() }, "crop_pct"),
        (ViewRecipe { views: 0, ..good.clone() }, "views"),
        (ViewRecipe { augment: Augment::None, ..good.clone() }, "views"),
        (ViewRecipe { augment: crop([0.5, 0.1], [1.0, 1.0], 0.5), ..good.clone() }, "scale"),
        (ViewRecipe { augment: crop([0.5, 1.0], [0.0, 1.0], 0.5), ..good.clone() }, "ratio"),
        (ViewRecipe { augment: crop([0.5, 1.0], [1.0, 1.0], 1.5), ..good.clone() }, "flip"),
        (ViewRecipe { augment: affine([0.0, 1.0], 0.0, 0.0), ..good.clone() }, "scale"),
        (ViewRecipe { augment: affine([1.0, 1.0], -1.0, 0.0), ..good.clone() }, "degrees"),
        (ViewRecipe { augment: affine([1.0, 1.0], 0.0, f64::INFINITY), ..good.clone() }, "shift"),
    ] {
        let text = bad.check().unwrap_err().to_string();
        assert!(text.contains(field), "{field}: {text}");
    }
}

#[test]
fn the_augmentation_fits_the_images() {
    assert_eq!(Augment::suited(1, 28, 28), Augment::AFFINE);
    assert_eq!(Augment::suited(3, 28, 28), Augment::CROP);
    assert_eq!(Augment::suited(1, 224, 224), Augment::CROP);
}
