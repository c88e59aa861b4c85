//! One layer on two GPUs: what docs/TWO_GPUS.md explains. A process to a GPU, each started with `RANK`,
//! `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`, as `torchrun --no-python` does.

use std::sync::Arc;

use fp8_moe::parallel::{
    Batch, Communicator, ExpertOptions, ExpertParallel, Nccl, Peers, Placement, Rendezvous,
};
use fp8_moe::{Checkpoint, Device, DeviceSpec, Result, Stream};
use half::bf16;

fn main() -> Result<()> {
    // RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
    let place = Rendezvous::from_env()?;
    let device = Device::open(DeviceSpec::Cuda(place.local_rank as u32))?;
    // All ranks meet here, then in NCCL.
    let communicator: Arc<dyn Communicator> = Arc::new(Nccl::connect(&device, Peers::join(&place)?)?);

    // This rank's experts.
    let checkpoint = Checkpoint::open("Qwen3-30B-A3B-FP8", None)?;
    let prefix = checkpoint.find_layer(Some("model.layers.7"))?;
    let whole = checkpoint.layer_config(&prefix)?;
    let placement = Placement::linear(whole.experts, place.size)?;
    let config = placement.config(&whole, place.rank);
    let layer = checkpoint.load_layer_with(&device, &prefix, &config, &|_| {})?;

    // At most 64 tokens of a rank at a time.
    let options = ExpertOptions::new(64).placement(placement);
    let mut experts = ExpertParallel::new(layer, communicator.clone(), options)?;
    let mut workspace = experts.workspace()?;

    // This rank's tokens: any number up to 64, 0 included.
    let tokens = 10 * place.rank;
    let stream = Stream::new(&device)?;
    let hidden = device.upload(&vec![bf16::ONE; tokens * whole.hidden_size])?;
    let mut out = device.uninit::<bf16>(hidden.len())?;
    experts.forward(&stream, Batch::new(&hidden), &mut workspace, &mut out)?;
    communicator.wait(&stream, communicator.limits().call)?;
    println!("rank {}: {:?}", place.rank, &out.to_vec(&stream)?.first());

    // Nobody leaves while another needs it.
    communicator.agree(&[])
}
