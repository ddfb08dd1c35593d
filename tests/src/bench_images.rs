//! Images: what it costs to get one, beside containerd, from the same registry on loopback.
//!
//! Called by: `make bench-images`. Each round gives each runtime a new daemon with an empty store, so that no pull finds
//! anything of the one before; the order of the two alternates. What the same bytes cost without any runtime is measured
//! beside them ([`floor`]).
//! Not here: pulls that fail, which are tests.

pub mod content;
pub mod floor;
pub mod report;
pub mod watch;

use std::time::Instant;

use self::content::References;
use self::watch::{Cost, Watch};
use crate::Outcome;
use crate::bench::contender::{self, Contender};
use crate::client::Cri;
use crate::registry::Registry;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often each runtime does everything.
    pub rounds: usize,
    /// Layers of the large image.
    pub layers: usize,
    /// Bytes of each of them before it is packed.
    pub layer_bytes: usize,
    /// How many small images are pulled at once.
    pub small: usize,
}

impl Plan {
    /// The plan of `make bench-images`.
    pub const FULL: Self = Self {
        rounds: 3,
        layers: 12,
        layer_bytes: 25 << 20,
        small: 100,
    };
    /// Little, to see that everything works.
    pub const QUICK: Self = Self {
        rounds: 1,
        layers: 3,
        layer_bytes: 1 << 20,
        small: 5,
    };
}

/// The runtimes that are compared: the name in the report and that of the contender.
pub const RUNTIMES: [(&str, &str); 2] = [
    ("coracle", "coracle-linux"),
    ("containerd", "containerd-runc"),
];

/// What one runtime took in one round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The large image, pulled and unpacked.
    pub big: Cost,
    /// All small images at once.
    pub small: Cost,
    /// The large image by another tag.
    pub retag: Cost,
    /// A WebAssembly component; only Coracle compiles it.
    pub component: Cost,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The rounds of each of [`RUNTIMES`].
    pub rounds: [Vec<Round>; 2],
    /// The same bytes of the large image without any runtime, one for each round.
    pub floor: Vec<Cost>,
    /// Bytes of the large image as they are sent, and unpacked.
    pub big_bytes: [usize; 2],
    /// Bytes of the component.
    pub component_bytes: usize,
}

/// Measures both. Errors: a pull was refused, or containerd is not installed.
pub async fn measure(plan: Plan) -> Outcome<Figures> {
    let registry = Registry::start()?;
    let images = content::push(&registry, plan)?;
    let mut figures = Figures {
        big_bytes: images.big_bytes(),
        component_bytes: images.component_bytes,
        ..Figures::default()
    };
    for round in 0..plan.rounds {
        figures.floor.push(floor::measure(&images.layers)?);
        let mut order = [0, 1];
        order.rotate_left(round % 2);
        for which in order {
            let (name, contender) = RUNTIMES[which];
            eprint_progress(round, name)?;
            let running = contender::start(contender, &registry).await?;
            let taken = one_round(running.as_ref(), &images.references, which).await?;
            figures.rounds[which].push(taken);
        }
    }
    Ok(figures)
}

/// Everything once, on the runtime `which` of [`RUNTIMES`] that has none of it.
async fn one_round(runtime: &dyn Contender, images: &References, which: usize) -> Outcome<Round> {
    let cri = runtime.cri();
    Ok(Round {
        big: pull_all(runtime, &cri, std::slice::from_ref(&images.big)).await?,
        small: pull_all(runtime, &cri, &images.small).await?,
        retag: pull_all(runtime, &cri, std::slice::from_ref(&images.retagged)).await?,
        component: pull_all(runtime, &cri, &images.component[which..=which]).await?,
    })
}

/// Pulls these images at once and waits for all of them.
async fn pull_all(runtime: &dyn Contender, cri: &Cri, images: &[String]) -> Outcome<Cost> {
    let watch = Watch::begin(runtime.scratch())?;
    let begun = Instant::now();
    let pulls: Vec<_> = images
        .iter()
        .map(|image| {
            let (cri, image) = (cri.clone(), image.clone());
            tokio::spawn(async move { cri.pull(&image).await })
        })
        .collect();
    for pull in pulls {
        pull.await??;
    }
    let took = begun.elapsed();
    watch.end(took)
}

fn eprint_progress(round: usize, name: &str) -> Outcome<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stderr(), "round {}: {name}", round + 1)?)
}
