//! How many kernels a graphics device is told to start: what a layer of many small operations pays for, on every
//! machine the same. Their names are added to the file
//! that `SEQZOO_LAUNCHES` names, if it does.

/// Runs `work` and counts the kernels that CubeCL starts meanwhile, 0 where nothing of CubeCL is compiled in.
///
/// # Errors
/// Those of `work`.
#[cfg(feature = "launches")]
pub fn count<R, E>(work: impl FnOnce() -> Result<R, E>) -> Result<(R, u64), E> {
    use std::sync::{Arc, Mutex};

    use cubecl_runtime::logging::{LaunchObservation, LaunchObserver};

    #[derive(Default)]
    struct Names(Mutex<Vec<&'static str>>);

    impl Names {
        fn all(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    impl LaunchObserver for Names {
        fn launched(&self, kernel: &'static str) {
            self.all().push(kernel);
        }
    }

    let names = Arc::new(Names::default());
    let watching = LaunchObservation::new(names.clone());
    let result = work();
    drop(watching);
    let names = names.all();
    if let Some(path) = std::env::var_os("SEQZOO_LAUNCHES") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let lines: String = names.iter().enumerate().map(|(i, name)| format!("{i} {name}\n")).collect();
        if let Err(error) = file.and_then(|mut file| std::io::Write::write_all(&mut file, lines.as_bytes())) {
            eprintln!("no names of launches in {}: {error}", path.display());
        }
    }
    Ok((result?, names.len() as u64))
}

/// Runs `work`; nothing here starts kernels.
///
/// # Errors
/// Those of `work`.
#[cfg(not(feature = "launches"))]
pub fn count<R, E>(work: impl FnOnce() -> Result<R, E>) -> Result<(R, u64), E> {
    Ok((work()?, 0))
}
