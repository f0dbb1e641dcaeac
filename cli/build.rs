//! Makes the built page (`cargo xtask page`) a part of `rproc`. Without it, `rproc ui` says how to get it.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // As Cargo sets it when it runs this: the compiled-in value may name another checkout with the same target folder.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let folder = Path::new(&manifest).join("../page/dist");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with('.') {
            files.push((name.to_owned(), path.canonicalize()?));
        }
    }
    files.sort();
    let mut code = "/// Empty if the page was not built.\nstatic FILES: &[File] = &[\n".to_owned();
    for (name, path) in files {
        // Writing to a String cannot fail.
        let _ = writeln!(code, "    File {{ name: {name:?}, bytes: include_bytes!({path:?}) }},");
    }
    code += "];\n";
    let target = env::var_os("OUT_DIR").unwrap_or_default();
    fs::write(Path::new(&target).join("page.rs"), code)
}
