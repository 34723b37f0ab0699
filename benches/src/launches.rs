//! How many kernels a graphics device is told to start: what a layer of many small operations pays for, on every
//! machine the same.

/// Runs `work` and counts the kernels that CubeCL starts meanwhile, 0 where nothing of CubeCL is compiled in.
///
/// # Errors
/// Those of `work`.
#[cfg(feature = "launches")]
pub fn count<R, E>(work: impl FnOnce() -> Result<R, E>) -> Result<(R, u64), E> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use cubecl_runtime::logging::{LaunchObservation, LaunchObserver};

    #[derive(Default)]
    struct Count(AtomicU64);

    impl LaunchObserver for Count {
        fn launched(&self, _kernel: &'static str) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let count = Arc::new(Count::default());
    let watching = LaunchObservation::new(count.clone());
    let result = work();
    drop(watching);
    Ok((result?, count.0.load(Ordering::Relaxed)))
}

/// Runs `work`; nothing here starts kernels.
///
/// # Errors
/// Those of `work`.
#[cfg(not(feature = "launches"))]
pub fn count<R, E>(work: impl FnOnce() -> Result<R, E>) -> Result<(R, u64), E> {
    Ok((work()?, 0))
}
