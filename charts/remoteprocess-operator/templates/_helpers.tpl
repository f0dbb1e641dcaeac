{{- define "rproc.name" -}}
remoteprocess-operator
{{- end }}

{{- define "rproc.fullname" -}}
{{- if contains (include "rproc.name" .) .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else if eq .Release.Name "remoteprocess" -}}
{{ include "rproc.name" . }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "rproc.name" .) | trunc 52 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "rproc.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rproc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "rproc.labels" -}}
{{ include "rproc.selectorLabels" . }}
{{ include "rproc.releaseLabels" . }}
{{- end }}

{{- /* Labels of what is not the operator's pod itself. */ -}}
{{- define "rproc.releaseLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: remoteprocess
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "rproc.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "rproc.fullname" .) }}
{{- end }}

{{- /* include "rproc.quoted" (list "a" "b"): 'a', 'b' as CEL takes them. */ -}}
{{- define "rproc.quoted" -}}
{{- range $index, $text := . }}{{ if $index }}, {{ end }}'{{ $text }}'{{ end -}}
{{- end }}

{{- /* Secret in which another program keeps the newest CA; empty if the operator makes its CAs. */ -}}
{{- define "rproc.caSecret" -}}
{{- if eq .Values.ca.source "CertManager" -}}
{{ include "rproc.fullname" . }}-cert-manager-ca
{{- else if eq .Values.ca.source "Secret" -}}
{{ .Values.ca.secretName }}
{{- end -}}
{{- end }}

{{- define "rproc.archiveClaim" -}}
{{ .Values.archive.existingClaim | default (printf "%s-archive" (include "rproc.fullname" .)) }}
{{- end }}

{{- /* include "rproc.image" (list . .Values.images.operator) */ -}}
{{- define "rproc.image" -}}
{{- $top := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $top.Values.imageRegistry }}{{ . | trimSuffix "/" }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $top.Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Host name of the relay inside the cluster. The CLI, the operator's certificate and the agents use this name. */ -}}
{{- define "rproc.relayHost" -}}
remoteprocess-relay.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Rules that the operator needs in every namespace with RemoteProcesses. */ -}}
{{- define "rproc.processRules" -}}
# controller and relay: watch the objects; both read the current version before they write.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses]
  verbs: [get, list, watch]
# controller: spec.ttl.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses]
  verbs: [delete]
# relay: sets spec.desiredState and the reason when it stops a process whose agent is away.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses]
  verbs: [patch]
# controller and relay: replace the status of the version that they have read.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses/status]
  verbs: [update]
# controller: owner references with blockOwnerDeletion, if the API server enforces the permission for them.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses/finalizers]
  verbs: [update]
# controller: creates one pod per attempt and deletes it when its record is safe; enrollment: finds the process of a pod.
- apiGroups: [""]
  resources: [pods]
  verbs: [create, get, list, watch, delete]
# controller: Events when the phase changes; relay: DeadlineNear, PauseFailed.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.triggers.enabled }}
# controller/bridge: watches the triggers and sinks, and writes their condition Deployed by server-side apply.
- apiGroups: [remoteprocess.dev]
  resources: [processtriggers, processsinks]
  verbs: [list, watch]
- apiGroups: [remoteprocess.dev]
  resources: [processtriggers/status, processsinks/status]
  verbs: [patch]
# controller/bridge: one Deployment for each trigger and sink, by server-side apply, which needs create for a new one. It looks first
# whether another one has its name. The garbage collector deletes it.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, get, list, watch, patch]
# controller/bridge: the same for the Service of a webhook. The operator deletes it if the trigger gets another source.
- apiGroups: [""]
  resources: [services]
  verbs: [create, get, list, watch, patch, delete]
{{- end }}
{{- end }}

{{- /* include "rproc.checkSize" (list "archive.size" .Values.archive.size): a number without a unit means bytes, which is rarely intended. */ -}}
{{- define "rproc.checkSize" -}}
{{- $name := index . 0 -}}
{{- $value := index . 1 -}}
{{- /* Units smaller than M, if they make sense for this value. */ -}}
{{- $smaller := gt (len .) 2 | ternary (last .) "" -}}
{{- $text := kindIs "float64" $value | ternary (printf "%.0f" (float64 $value)) (toString $value) -}}
{{- if not (regexMatch (printf "^(([1-9][0-9]*([.][0-9]+)?|0[.][0-9]*[1-9][0-9]*)(%sM|G|T|P|E|Mi|Gi|Ti|Pi|Ei)|[1-9][0-9]{6,})$" $smaller) $text) -}}
{{- fail (printf "%s: %s is not a size of at least 1M. Give a number and a unit, such as 20Gi. A number alone means bytes." $name $text) -}}
{{- end -}}
{{- end }}

{{- /* The operator does not start with a filter that it cannot parse. A name without a level would be a target, and is nearly always a misspelled level. */ -}}
{{- define "rproc.checkFilter" -}}
{{- range splitList "," . -}}
{{- if not (regexMatch "^ *(([A-Za-z_][A-Za-z0-9_:.-]*)?(\\[[^]]*\\])?=)?(?i:off|error|warn|info|debug|trace) *$" .) -}}
{{- fail (printf "log.filter: %q is neither a level (off, error, warn, info, debug, trace) nor target=level, such as remoteprocess_operator=debug. Separate several with commas." .) -}}
{{- end -}}
{{- if hasPrefix "=" (trim .) -}}
{{- fail (printf "log.filter: %q has no target before the equals sign" .) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* One release per cluster: two operators would reconcile the same objects. */ -}}
{{- define "rproc.checkOnlyRelease" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "remoteprocesses.remoteprocess.dev" -}}
{{- $annotations := (($crd | default dict).metadata | default dict).annotations | default dict -}}
{{- $name := index $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" -}}
{{- if and $name $namespace (or (ne $name .Release.Name) (ne $namespace .Release.Namespace)) -}}
{{- range (lookup "apps/v1" "Deployment" $namespace "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- if and (eq (index $labels "app.kubernetes.io/name" | default "") (include "rproc.name" $)) (eq (index $labels "app.kubernetes.io/instance" | default "") $name) -}}
{{- fail (printf "this cluster already has RemoteProcess: release %s in namespace %s. There can be only one release per cluster. Upgrade that release (helm upgrade %s --namespace %s), or uninstall it first." $name $namespace $name $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
