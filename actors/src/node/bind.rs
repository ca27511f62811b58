//! What CSI's publish and unpublish do at a path: bind mounts, from kernel facts alone.
//!
//! No actor keeps these: a bind mount belongs to a pod, and kubelet asks again until it is as it should be.

use super::messages::{BindVolume, Bound, Mounted};
use crate::env::Env;
use crate::events::Audit;
use crate::failure::Failure;
use meshstor_kernel::id::VolumeId;
use meshstor_kernel::ops::{Changed, Op};
use meshstor_plan::Step;

const KIND: &str = "bind";
/// State of an array that refuses every write.
const BROKEN: &str = "broken";

/// Binds the volume staged at `source` to `target`; a dead or differently made bind there is made anew.
pub async fn bind(env: &Env, wish: BindVolume) -> Result<Bound, Failure> {
    let BindVolume { volume, source, target, read_only, alone } = wish;
    let Some(source) = source_of(env, volume, source).await? else { return Ok(Bound::NotStaged) };
    let there = env.kernel.mount_at(&target).await?;
    let already = there.as_ref().is_some_and(|mount| mount.volume == Some(volume) && mount.alive);
    if alone
        && !already
        && let Some(other) = elsewhere(env, volume, &[&source, &target]).await?
    {
        return Ok(Bound::Elsewhere(other));
    }
    if let Some(mount) = there {
        match mount.volume {
            Some(at) if at == volume && mount.alive && mount.read_only == read_only => return Ok(Bound::Done),
            Some(at) if at == volume => {
                apply(env, &target, Op::Unmount { target: target.clone(), lazy: !mount.alive }).await?;
            }
            _ => return Ok(Bound::Occupied(mount.source)),
        }
    }
    apply(env, &target, Op::BindMount { source, target: target.clone(), read_only }).await?;
    Ok(Bound::Done)
}

/// What is bound: the living staging mount, or the device of an array that takes writes. `None`: neither is there.
async fn source_of(env: &Env, volume: VolumeId, staged: Option<String>) -> Result<Option<String>, Failure> {
    let Some(staged) = staged else {
        let array = env.kernel.array(volume).await?;
        return Ok(array.filter(|array| array.state != BROKEN).map(|array| array.path));
    };
    let mount = env.kernel.mount_at(&staged).await?;
    Ok(mount.filter(|mount| mount.alive && mount.volume == Some(volume)).map(|_| staged))
}

/// A mount of the volume at none of these places: another pod's. A pod that has it already is not asked, because kubelet
/// binds parts of it to further places for that pod (`subPath`).
async fn elsewhere(env: &Env, volume: VolumeId, known: &[&String]) -> Result<Option<String>, Failure> {
    let tidy = |path: &str| path.trim_end_matches('/').to_string();
    let fact = env.kernel.mounts(volume).await?;
    Ok(fact.mounts.into_keys().chain(fact.raw).find(|at| known.iter().all(|path| tidy(path) != tidy(at))))
}

/// Unmounts what is at `target` if it is ours, and removes the empty directory.
pub async fn unbind(env: &Env, target: String) -> Result<(), Failure> {
    let mount = env.kernel.mount_at(&target).await?;
    let foreign = mount.as_ref().is_some_and(|mount| mount.volume.is_none() && mount.alive);
    if foreign {
        tracing::warn!(target, "what is mounted there is not ours: left alone");
        return Ok(());
    }
    let lazy = mount.is_some_and(|mount| !mount.alive);
    apply(env, &target, Op::Unmount { target: target.clone(), lazy }).await.map(|_| ())
}

/// What of ours is mounted at a path.
pub async fn mounted(env: &Env, path: String) -> Result<Option<Mounted>, Failure> {
    let Some(mount) = env.kernel.mount_at(&path).await? else { return Ok(None) };
    let Some(volume) = mount.volume else { return Ok(None) };
    let array = env.kernel.array(volume).await?;
    let size_bytes = array.map_or(0, |array| array.size_bytes);
    Ok(Some(Mounted { volume, alive: mount.alive, raw: mount.raw, size_bytes, view: None, health: None }))
}

/// What is known of a raw block volume, which is mounted nowhere when it is staged.
pub async fn device(env: &Env, volume: VolumeId) -> Result<Option<Mounted>, Failure> {
    let array = env.kernel.array(volume).await?;
    Ok(array.map(|array| {
        let (alive, size_bytes) = (array.state != BROKEN, array.size_bytes);
        Mounted { volume, alive, raw: true, size_bytes, view: None, health: None }
    }))
}

async fn apply(env: &Env, key: &str, op: Op) -> Result<Changed, Failure> {
    let limit = op.deadline();
    let step = Step::Kernel(op);
    let audit = Audit::begin(KIND, key, &step);
    let result = match tokio::time::timeout(limit, env.apply_to_kernel(&step)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Failure::TimedOut { what: step.to_string(), after: limit }),
    };
    audit.end(&result);
    result
}
