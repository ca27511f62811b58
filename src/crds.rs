//! `meshstor crds`: the custom resource definitions, printed for `kubectl apply` or applied by the chart's hook.
//!
//! Applying never puts an older schema over a newer one: the API server would drop the fields that the older one lacks at the
//! next write of each object, and these fields are the record (K16).

use crate::options;
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use meshstor_api::{SCHEMA, schema_of};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Owner of the applied fields.
const MANAGER: &str = "meshstor-crds";
/// From the apply until the API server serves a kind: below a second, seconds when it is busy.
const ESTABLISHED_MAX: Duration = Duration::from_secs(60);

/// The custom resource definitions.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  meshstor crds | kubectl apply --server-side -f -\n  meshstor crds --apply     # refuses to go back to an older schema"
)]
pub struct Arguments {
    /// Apply them to the cluster, unless it has newer ones, and wait until they are served
    #[arg(long)]
    apply: bool,
}

/// Prints one YAML document for each kind, or applies them.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.apply {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { apply(options::kube_client().await?).await })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    for crd in meshstor_api::crds() {
        write!(out, "---\n{}", serde_yaml::to_string(&crd)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All of them or none: the schemas are looked at before anything is changed.
async fn apply(client: Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for crd in meshstor_api::crds() {
        let name = crd.name_any();
        let there = api.get_opt(&name).await.with_context(|| format!("read {name}"))?;
        refuse_older(&name, there.as_ref())?;
    }
    for crd in meshstor_api::crds() {
        let name = crd.name_any();
        // Forced: whoever applied an earlier one by hand does not keep fields to himself.
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(&crd)).await.with_context(|| format!("apply {name}"))?;
        let served = tokio::time::timeout(ESTABLISHED_MAX, established(&api, &name)).await;
        served.with_context(|| format!("{name} is not served after {} s", ESTABLISHED_MAX.as_secs()))??;
        println!("{name}: schema {SCHEMA}, served");
    }
    Ok(())
}

fn refuse_older(name: &str, there: Option<&CustomResourceDefinition>) -> Result<()> {
    let number = there.map_or(0, schema_of);
    ensure!(
        number <= SCHEMA,
        "{name} has schema {number}, this program knows schemas up to {SCHEMA}: an older one would make the API server drop \
         fields of the record. Install the version that you had, or a newer one"
    );
    Ok(())
}

async fn established(api: &Api<CustomResourceDefinition>, name: &str) -> Result<()> {
    loop {
        let crd = api.get(name).await.with_context(|| format!("read {name}"))?;
        let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
            return Ok(());
        }
        if let Some(refused) = conditions.iter().find(|c| c.type_ == "NamesAccepted" && c.status == "False") {
            bail!("{name}: {}", refused.message.as_deref().unwrap_or("its names are taken"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_never_replaced_and_anything_else_is() {
        let with = |number: Option<&str>| {
            let mut crd = meshstor_api::crds().remove(0);
            crd.metadata.annotations = number.map(|n| [(meshstor_api::SCHEMA_ANNOTATION.into(), n.into())].into());
            crd
        };
        let newer = (SCHEMA + 1).to_string();
        let same = SCHEMA.to_string();
        for crd in [None, Some(with(None)), Some(with(Some(&same))), Some(with(Some("what")))] {
            assert!(refuse_older("x", crd.as_ref()).is_ok(), "{crd:?}");
        }
        let error = refuse_older("x", Some(&with(Some(&newer)))).unwrap_err().to_string();
        assert!(error.contains(&newer) && error.contains("drop fields"), "{error}");
    }
}
