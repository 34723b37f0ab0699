//! Where text comes from: a file, a folder, or this workspace's own sources.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Reads a whole UTF-8 file.
pub(crate) fn read_utf8(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes)
        .map_err(|e| Error::NotUtf8 { path: path.to_path_buf(), offset: e.utf8_error().valid_up_to() })
}

/// Reads a file, or every text file in a folder, in the order of their paths.
///
/// In a folder, hidden entries are passed over and files that are no UTF-8 (images, for example) are
/// skipped with a warning; a single file must be UTF-8.
pub(crate) fn read_documents(path: &Path) -> Result<Vec<String>> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_dir() {
        return Ok(vec![read_utf8(path)?]);
    }
    let mut documents = Vec::new();
    for file in walk(path, &|_, _| true)? {
        match read_utf8(&file) {
            Ok(text) => documents.push(text),
            Err(Error::NotUtf8 { .. }) => tracing::warn!("{}: skipped, not UTF-8", file.display()),
            Err(error) => return Err(error),
        }
    }
    Ok(documents)
}

/// Rust and Markdown files of the workspace this program was built from, or, where they are gone, the
/// copies of a few of them inside the program.
pub(crate) fn own_sources() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let is_source = |path: &Path, name: &str| match path.is_dir() {
        // What builds and runs leave behind is no source.
        true => !(name.starts_with("target") || name == "node_modules" || name == "runs"),
        false => path.extension().is_some_and(|e| e == "rs" || e == "md"),
    };
    let documents: Vec<String> =
        walk(&root, &is_source).unwrap_or_default().iter().filter_map(|path| read_utf8(path).ok()).collect();
    if documents.is_empty() { SAMPLE.iter().map(ToString::to_string).collect() } else { documents }
}

const SAMPLE: &[&str] = &[
    include_str!("mod.rs"),
    include_str!("mqar.rs"),
    include_str!("documents.rs"),
    include_str!("text.rs"),
    include_str!("tokenizer.rs"),
    include_str!("../registry/mod.rs"),
    include_str!("../registry/info/mod.rs"),
];

/// Files below a folder, sorted by path; of entries that are not hidden, those `keep` accepts.
fn walk(root: &Path, keep: &dyn Fn(&Path, &str) -> bool) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
            let entry = entry.map_err(|e| Error::io(&folder, e))?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with('.') || !keep(&path, &name) {
                continue;
            }
            // The entry's own type, so that a link cannot lead in circles.
            let kind = entry.file_type().map_err(|e| Error::io(&path, e))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_found_and_sorted() {
        let documents = own_sources();
        assert!(documents.len() > 20, "{} files", documents.len());
        assert_eq!(documents, own_sources());
        assert!(SAMPLE.concat().len() > 10_000);
    }

    #[test]
    fn a_folder_is_read_in_order_without_hidden_or_binary_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        for (name, bytes) in
            [("b.txt", &b"two"[..]), ("a/c.txt", b"one"), (".hidden", b"no"), ("x.png", &[0xFF, 0xD8])]
        {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        assert_eq!(read_documents(dir.path()).unwrap(), ["one", "two"]);
    }

    #[test]
    fn what_is_not_utf8_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latin1.txt");
        std::fs::write(&path, b"caf\xE9!").unwrap();
        let error = read_documents(&path).unwrap_err().to_string();
        assert!(error.contains("latin1.txt") && error.contains("offset 3"), "{error}");
    }
}
