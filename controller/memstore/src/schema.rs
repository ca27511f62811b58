//! The list of kinds the store serves: where each one lives in the URL space and which rules differ for it.
//! Filled by [`crate::Builder`], read by routing, the object rules and the selectors. Never looks at an object's
//! own fields: their validation belongs to the caller's [`crate::Validator`].

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// One kind: its place in the URL space and the few rules in which kinds differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// API group; empty for the core group.
    pub group: String,
    /// API version, for instance `v1alpha1`.
    pub version: String,
    /// Lower-case plural, as in the URL.
    pub plural: String,
    /// Kind, as in `kind:` of an object.
    pub kind: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether `status` is written only through `/status`.
    pub status_subresource: bool,
    /// Paths usable in a field selector besides metadata.name and metadata.namespace. Written as in a selector:
    /// `spec.node`; a leading dot, as in a CRD, is accepted.
    pub selectable_fields: Vec<String>,
}

impl Schema {
    /// A cluster-scoped kind without status subresource and without selectable fields.
    pub fn new(group: &str, version: &str, plural: &str, kind: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            plural: plural.into(),
            kind: kind.into(),
            namespaced: false,
            status_subresource: false,
            selectable_fields: Vec::new(),
        }
    }

    /// The same kind, namespaced.
    pub fn in_namespaces(mut self) -> Self {
        self.namespaced = true;
        self
    }

    /// The same kind with a status subresource.
    pub fn with_status(mut self) -> Self {
        self.status_subresource = true;
        self
    }

    /// The same kind with these fields usable in field selectors.
    pub fn selectable(mut self, fields: &[&str]) -> Self {
        self.selectable_fields.extend(fields.iter().map(|field| (*field).to_owned()));
        self
    }

    /// What a real server would read out of this definition; `None` when no version of it is served.
    /// The stored version is taken, or else the first one served.
    pub fn from_crd(crd: &CustomResourceDefinition) -> Option<Self> {
        let spec = &crd.spec;
        let served = || spec.versions.iter().filter(|version| version.served);
        let version = served().find(|version| version.storage).or_else(|| served().next())?;
        let fields = version.selectable_fields.iter().flatten().map(|field| field.json_path.clone());
        Some(Self {
            group: spec.group.clone(),
            version: version.name.clone(),
            plural: spec.names.plural.clone(),
            kind: spec.names.kind.clone(),
            namespaced: spec.scope == "Namespaced",
            status_subresource: version.subresources.as_ref().is_some_and(|sub| sub.status.is_some()),
            selectable_fields: fields.collect(),
        })
    }

    /// `apiVersion` of an object of this kind.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `plural.group`, as error messages name a resource.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Kind.group`, as validation messages name a kind.
    pub(crate) fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    pub(crate) fn is(&self, group: &str, version: &str, plural: &str) -> bool {
        self.group == group && self.version == version && self.plural == plural
    }

    /// Whether a PUT without resourceVersion overwrites. True for the core kinds listed here, refused with 422 for
    /// custom resources, leases and volume attachments.
    pub(crate) fn allows_unconditional_update(&self) -> bool {
        self.group.is_empty()
    }

    /// Whether create ignores the `status` in the body. Nodes are the exception: kubelet registers them with it.
    pub(crate) fn drops_status_on_create(&self) -> bool {
        self.status_subresource && !(self.group.is_empty() && self.plural == "nodes")
    }

    /// Strategic merge patch exists for compiled-in kinds only; custom resources answer 415.
    pub(crate) fn allows_strategic_merge(&self) -> bool {
        self.group.is_empty() || self.group.ends_with(".k8s.io")
    }
}

/// The compiled-in kinds of a real server that a storage driver meets.
pub fn builtin_schemas() -> Vec<Schema> {
    let event_fields = ["involvedObject.kind", "involvedObject.name", "involvedObject.uid", "reason", "type"];
    vec![
        Schema::new("", "v1", "namespaces", "Namespace").with_status(),
        Schema::new("", "v1", "nodes", "Node").with_status().selectable(&["spec.unschedulable"]),
        Schema::new("", "v1", "events", "Event").in_namespaces().selectable(&event_fields),
        Schema::new("", "v1", "pods", "Pod")
            .in_namespaces()
            .with_status()
            .selectable(&["spec.nodeName", "status.phase"]),
        Schema::new("", "v1", "persistentvolumes", "PersistentVolume").with_status(),
        Schema::new("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim").in_namespaces().with_status(),
        Schema::new("", "v1", "configmaps", "ConfigMap").in_namespaces(),
        Schema::new("apps", "v1", "deployments", "Deployment").in_namespaces().with_status(),
        Schema::new("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget").in_namespaces().with_status(),
        Schema::new("coordination.k8s.io", "v1", "leases", "Lease").in_namespaces(),
        Schema::new("events.k8s.io", "v1", "events", "Event").in_namespaces(),
        Schema::new("storage.k8s.io", "v1", "csinodes", "CSINode"),
        Schema::new("storage.k8s.io", "v1", "storageclasses", "StorageClass"),
        Schema::new("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment").with_status(),
    ]
}
