//! A request for compiled code: looks it up, or has it made.
//!
//! Called by the daemon, for each container, exec and pull. Calls: the cache's files, the compiler.
//! Invariants: an entry is made once at a time, and all who want it wait for that; each of them waits for a compiler by itself,
//! in its own tenant's turn; a compilation that has not begun ends with the last of them, and one that has begun goes on, so
//! that a retry joins it; a failure is remembered: a retry does not compile the module again.
//! It must not know what tenants and images are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use super::turn::{Making, Turn};
use super::{CompileCache, Compiled, EngineRef, EntryKey, blocking, bounds, compile, lock};
use coracle_sandbox::helper::Permit;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;

/// A module, and for whom it is compiled.
#[derive(Clone, Copy, Debug)]
pub struct ModuleRequest<'a> {
    /// Its file.
    pub path: &'a Path,
    /// SHA-256 of the file, 64 digits.
    pub digest: &'a str,
    /// Who wants it: compilers are shared by this, and so is the room for compiled code.
    pub tenant: &'a str,
    /// The image that it is from: failures are remembered by this.
    pub image: &'a str,
}

/// What is to be made.
struct Order {
    engine: EngineRef,
    module: PathBuf,
    at: EntryKey,
    image: String,
    /// When it was asked for.
    asked: Instant,
}

impl CompileCache {
    /// The compiled form of a module for `engine`.
    ///
    /// Errors: [`Kind::Invalid`] with the engine's reason when the module is refused, [`Kind::Exhausted`] when a compile limit
    /// was hit or the disk is full.
    pub async fn compiled(
        self: &Arc<Self>,
        engine: &EngineRef,
        request: ModuleRequest<'_>,
    ) -> Result<Arc<Compiled>> {
        let span = info_span!(target: "otel", "wasm.compile", coracle.cache = Empty);
        let found = self.find_or_compile(engine, request, &span);
        found.instrument(span.clone()).await
    }

    /// The same; `span` learns whether it was there.
    async fn find_or_compile(
        self: &Arc<Self>,
        engine: &EngineRef,
        request: ModuleRequest<'_>,
        span: &Span,
    ) -> Result<Arc<Compiled>> {
        let digest = request.digest.trim_start_matches("sha256:").to_owned();
        let at = (engine.hash.clone(), digest);
        let (asked, mut is_counted) = (Instant::now(), false);
        loop {
            let turn = Turn::of(self, &at);
            let ended = turn.ended();
            let found = self.look(&turn, request.tenant).await?;
            if !std::mem::replace(&mut is_counted, true) {
                let cache = if found.is_some() { "hit" } else { "miss" };
                span.record("coracle.cache", cache);
                self.counters.request(found.is_some());
            }
            if let Some(found) = found {
                return Ok(found);
            }
            if let Some(failure) = self.failures.find(&at) {
                return Err(failure);
            }
            if turn.is_being_made() {
                ended.await;
                continue;
            }
            let memory_bytes = lock(&self.limits).memory_bytes;
            let permit = tokio::select! {
                biased;
                () = ended => continue,
                permit = self.permits.take(request.tenant, memory_bytes) => permit?,
            };
            // Another one's turn may have come first: then this permit is not needed.
            let Some(making) = turn.begin() else { continue };
            let order = Order {
                engine: engine.clone(),
                module: request.path.to_owned(),
                at,
                image: request.image.to_owned(),
                asked,
            };
            let (cache, tenant) = (Arc::clone(self), request.tenant.to_owned());
            let made =
                tokio::spawn(async move { cache.made(&order, &tenant, making, permit).await });
            let made = made.await;
            return made.map_err(|e| Error::with(Kind::Bug, "run a compilation", e))?;
        }
    }

    /// The verified entry, if there is one. One at a time looks for the same.
    async fn look(self: &Arc<Self>, turn: &Turn, tenant: &str) -> Result<Option<Arc<Compiled>>> {
        let guard = turn.look().await;
        let (cache, at, tenant) = (Arc::clone(self), turn.at().clone(), tenant.to_owned());
        blocking(move || {
            let _guard = guard;
            cache.is_wanted_by(&at, &tenant);
            cache.find(&at.0, &at.1)
        })
        .await
    }

    /// Makes an entry, unless somebody has made it just now.
    async fn made(
        self: &Arc<Self>,
        order: &Order,
        tenant: &str,
        making: Making,
        permit: Permit,
    ) -> Result<Arc<Compiled>> {
        if let Some(found) = self.look(making.turn(), tenant).await? {
            return Ok(found);
        }
        let made = self.make(order, &making, permit).await;
        self.counters.compilation(&made, order.asked.elapsed());
        made
    }

    /// Compiles what is not there, alone for its entry.
    async fn make(
        self: &Arc<Self>,
        order: &Order,
        making: &Making,
        permit: Permit,
    ) -> Result<Arc<Compiled>> {
        failpoint::hit("compile.exec").during(|| "start the compiler".into())?;
        let limits = *lock(&self.limits);
        let (cache, module) = (Arc::clone(self), order.module.clone());
        let (code, files) = blocking(move || {
            let code = cache.temporary();
            let code = code.during(|| "make a file for compiled code".into())?;
            let files = compile::Files::open(&module, &code.file)?;
            Ok((code, files))
        })
        .await?;
        let job = compile::Job {
            exe: &order.engine.exe,
            module: &order.module,
            bounds: bounds(limits),
        };
        let info = match compile::compile(permit, &job, files).await? {
            Ok(info) => info,
            Err(failure) => {
                if limits == *lock(&self.limits) {
                    self.failures.remember(&order.at, &order.image, &failure);
                }
                return Err(failure);
            }
        };
        let guard = making.turn().look().await;
        let (cache, at) = (Arc::clone(self), order.at.clone());
        blocking(move || {
            let _guard = guard;
            cache.store(&at.0, &at.1, info, code)
        })
        .await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use coracle_sandbox::helper::Permits;

    use super::*;
    use crate::cache::CompileLimits;

    const MEMORY_BYTES: u64 = 1 << 20;

    /// A cache whose compilers wait for `permits`, and an engine whose compiler ends at once without a verdict.
    fn cache(name: &str, permits: &Permits) -> (PathBuf, Arc<CompileCache>, EngineRef) {
        let path =
            std::env::temp_dir().join(format!("coracle-request-{name}-{}", std::process::id()));
        let limits = CompileLimits {
            cpu: Duration::from_secs(1),
            memory_bytes: MEMORY_BYTES,
            module_bytes: 1 << 20,
            cache_bytes: 8 << 20,
        };
        let cache = CompileCache::open(&path, limits, permits.clone()).unwrap();
        let engine = EngineRef {
            hash: "e".repeat(64),
            exe: "/bin/true".into(),
        };
        (path, Arc::new(cache), engine)
    }

    #[tokio::test]
    async fn a_compilation_that_has_not_begun_ends_with_the_last_who_wants_it() {
        let permits = Permits::new(1, MEMORY_BYTES);
        let (path, cache, engine) = cache("left", &permits);
        let module = path.join("module");
        std::fs::write(&module, "").unwrap();
        let held = permits.take("another", MEMORY_BYTES).await.unwrap();
        let mut wants = Vec::new();
        for tenant in ["a", "a", "b"] {
            let (cache, engine, module) = (cache.clone(), engine.clone(), module.clone());
            wants.push(tokio::spawn(async move {
                let request = ModuleRequest {
                    path: &module,
                    digest: &"0".repeat(64),
                    tenant,
                    image: "image",
                };
                cache.compiled(&engine, request).await.map(drop)
            }));
        }
        let short = Duration::from_millis(100);
        tokio::time::sleep(short).await;
        wants.iter().for_each(tokio::task::JoinHandle::abort);
        for want in wants {
            assert!(want.await.unwrap_err().is_cancelled());
        }
        drop(held);
        // The place is free, and nobody has compiled anything.
        let again = tokio::time::timeout(short * 100, permits.take("another", MEMORY_BYTES));
        drop(again.await.unwrap().unwrap());
        tokio::time::sleep(short).await;
        assert_eq!(cache.counts().failed, 0);
        assert!(lock(&cache.busy).is_empty());
        std::fs::remove_dir_all(path).unwrap();
    }
}
