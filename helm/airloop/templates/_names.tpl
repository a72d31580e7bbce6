{{- define "airloop.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "airloop" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-airloop" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What tells objects of this release; `component` is added by each. */ -}}
{{- define "airloop.selector" -}}
app.kubernetes.io/name: airloop
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "airloop.labels" -}}
{{ include "airloop.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "airloop.namespace" -}}
{{- .Values.steps.namespace | default .Release.Namespace -}}
{{- end -}}

{{- /* Labels by which the pod runner's pods are known. */ -}}
{{- define "airloop.stepLabels" -}}
app.kubernetes.io/name: airloop
app.kubernetes.io/component: step
airloop/instance: {{ include "airloop.fullname" . }}
{{- end -}}

{{- define "airloop.claim" -}}
{{- .Values.state.claim.existing | default (printf "%s-state" (include "airloop.fullname" .)) -}}
{{- end -}}

{{- define "airloop.mlflow" -}}
{{- if .Values.mlflow.address -}}
{{- .Values.mlflow.address | trimSuffix "/" -}}
{{- else if .Values.mlflow.deploy -}}
http://{{ include "airloop.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- end -}}
{{- end -}}

{{- define "airloop.feastRegistry" -}}
{{- .Values.feastRegistry.address | default .Values.catalog.address -}}
{{- end -}}

{{- /* Files may only be written where a volume is; nothing else is given. */ -}}
{{- define "airloop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "airloop.podSecurity" -}}
runAsNonRoot: true
runAsUser: 50000
runAsGroup: 0
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Plain environment that every payload needs to find its state, as YAML. */ -}}
{{- define "airloop.environment" -}}
{{- if eq .Values.state.kind "claim" }}
AIRLOOP_HOME: {{ .Values.state.claim.path | quote }}
{{- else }}
AWS_REGION: {{ .Values.state.s3.region | quote }}
{{- with .Values.state.s3.endpoint }}
AWS_ENDPOINT_URL_S3: {{ . | quote }}
{{- end }}
AIRLOOP_FEAST_REGISTRY: {{ include "airloop.feastRegistry" . | quote }}
{{- end }}
{{- with .Values.onlineStore.address }}
AIRLOOP_ONLINE_STORE: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* Environment that comes from Secrets, by variable, as YAML; the pod runner's own way to say it. */ -}}
{{- define "airloop.secrets" -}}
{{- if eq .Values.state.kind "s3" }}
{{- with .Values.state.s3.credentials }}
{{- if .secret }}
AWS_ACCESS_KEY_ID: {secret: {{ .secret | quote }}, key: {{ .accessKeyId | quote }}}
AWS_SECRET_ACCESS_KEY: {secret: {{ .secret | quote }}, key: {{ .secretAccessKey | quote }}}
{{- end }}
{{- end }}
{{- with .Values.catalog.password }}
{{- if .secret }}
PGPASSWORD: {secret: {{ .secret | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.onlineStore.from }}
{{- if .secret }}
AIRLOOP_ONLINE_STORE: {secret: {{ .secret | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end }}
{{- end -}}
