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

{{- /* The relay's name inside the cluster. The CLI, the operator's certificate and the agents know the Service by this name. */ -}}
{{- define "rproc.relayHost" -}}
remoteprocess-relay.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Rules that the operator needs wherever RemoteProcesses are. */ -}}
{{- define "rproc.processRules" -}}
# controller and relay: watch the objects; both read them afresh before they write.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses]
  verbs: [get, list, watch]
# controller: spec.ttl.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses]
  verbs: [delete]
# relay (Stop of a process whose agent is away): sets spec.desiredState, and says why.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses]
  verbs: [patch]
# controller and relay: server-side apply of their own fields of the status; grant and exit carry the resourceVersion.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses/status]
  verbs: [patch]
# controller: owner references with blockOwnerDeletion, where the API server enforces the permission for them.
- apiGroups: [remoteprocess.dev]
  resources: [remoteprocesses/finalizers]
  verbs: [update]
# controller: one pod per attempt, deleted when its record is safe; enrolment: which process a pod belongs to.
- apiGroups: [""]
  resources: [pods]
  verbs: [create, get, list, watch, delete]
# controller: Events on changes of phase; relay: DeadlineNear, PauseFailed.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
