//! The images: one large image of many layers, many small ones, a component. Half of each file is random, half text that
//! packs well, so that a layer packs to a little over half, as those of distributions do.

use crate::bench_images::Plan;
use crate::dice::Dice;
use crate::push::{Image, file};
use crate::registry::Registry;
use crate::{Outcome, guests};

/// Bytes of an ordinary file.
const FILE_BYTES: usize = 50 << 10;

/// Where the images lie in the registry.
#[derive(Clone, Debug)]
pub struct References {
    /// The large image.
    pub big: String,
    /// The same by another tag.
    pub retagged: String,
    /// The small ones.
    pub small: Vec<String>,
    /// The component: as an artifact for Coracle, as the file of an image for containerd, which takes no artifacts.
    pub component: [String; 2],
}

/// What was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Where it lies.
    pub references: References,
    /// The packed layers of the large image.
    pub layers: Vec<Vec<u8>>,
    /// What they have in them, bytes.
    pub unpacked: usize,
    /// Bytes of the component.
    pub component_bytes: usize,
}

impl Pushed {
    /// Bytes of the large image as they are sent, and unpacked.
    pub fn big_bytes(&self) -> [usize; 2] {
        [self.layers.iter().map(Vec::len).sum(), self.unpacked]
    }
}

/// Makes and pushes everything. Errors: the registry refuses it, or the component cannot be built.
pub fn push(registry: &Registry, plan: Plan) -> Outcome<Pushed> {
    let host = registry.host();
    let big = image(1, plan.layers, plan.layer_bytes)?;
    let first = big.push(host, "bench/big", "1")?;
    let again = big.push(host, "bench/big", "2")?;
    let mut small = Vec::new();
    for number in 0..plan.small {
        let image = image(1_000 + number as u64, 1, 2 * FILE_BYTES)?;
        let repository = format!("bench/small-{number}");
        small.push(image.push(host, &repository, "1")?.reference);
    }
    let component = guests::python("function", "http-function")?;
    let artifact = Image::artifact(&component).push(host, "bench/component", "1")?;
    let files = [file("component.wasm", 0o644, &component)];
    let stored = Image::linux(&files, &["/component.wasm"])?.push(host, "bench/stored", "1")?;
    Ok(Pushed {
        references: References {
            big: first.reference,
            retagged: again.reference,
            small,
            component: [artifact.reference, stored.reference],
        },
        layers: big.layers.into_iter().map(|(_, bytes)| bytes).collect(),
        unpacked: plan.layers * plan.layer_bytes,
        component_bytes: component.len(),
    })
}

/// An image of layers with many files each.
fn image(seed: u64, layers: usize, layer_bytes: usize) -> Outcome<Image> {
    let mut dice = Dice::new(seed);
    let mut image = None;
    for layer in 0..layers {
        let files = files(&mut dice, layer, layer_bytes);
        let files: Vec<_> = files
            .iter()
            .map(|(path, bytes)| file(path, 0o644, bytes))
            .collect();
        match &mut image {
            None => image = Some(Image::linux(&files, &["/0/0"])?),
            Some(image) => image.add_layer(&files)?,
        }
    }
    image.ok_or_else(|| "an image without layers".into())
}

/// Files of one layer, each in one of a hundred directories.
fn files(dice: &mut Dice, layer: usize, bytes: usize) -> Vec<(String, Vec<u8>)> {
    let count = bytes.div_ceil(FILE_BYTES);
    (0..count)
        .map(|number| {
            let size = FILE_BYTES.min(bytes - number * FILE_BYTES);
            let path = format!("{layer}/{}/{number}", number % 100);
            (path, half_random(dice, size))
        })
        .collect()
}

fn half_random(dice: &mut Dice, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 4);
    while bytes.len() < size / 2 {
        bytes.extend_from_slice(&(dice.below(1 << 31) as u32).to_le_bytes()[..3]);
    }
    while bytes.len() < size {
        let line = format!("line {} of a file that is text\n", dice.below(1_000));
        bytes.extend_from_slice(line.as_bytes());
    }
    bytes.truncate(size);
    bytes
}
