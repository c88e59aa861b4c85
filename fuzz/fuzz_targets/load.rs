//! What every target does with a checkpoint: opens it, describes it, loads its layers on the host.

use std::path::Path;

use fp8_moe::Checkpoint;

/// Whatever the bytes, this must return: without a panic, and without asking for more memory than the file's
/// size asks for.
pub fn load(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path, None) else { return };
    checkpoint.inspect();
    for prefix in checkpoint.layers() {
        if let Ok(config) = checkpoint.layer_config(&prefix) {
            let _ = checkpoint.weights(&prefix, &config);
        }
    }
}
