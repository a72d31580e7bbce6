{{- /* How Airflow is installed so that it fits these values, for NOTES.txt. */ -}}
{{- define "airloop.nextSteps" -}}
{{- $claim := eq .Values.state.kind "claim" -}}
{{- $written := .Files.Get "airflow-values.yaml" | fromYaml -}}
Airflow comes from its own chart, with values that are beside this one. It needs a PostgreSQL, whose address
(postgresql://…) is in Secret airloop-airflow-database, key connection:
  helm upgrade --install airflow apache-airflow/airflow --version 1.22.0 -n {{ .Release.Namespace }} -f airflow-values.yaml
{{- if $claim }} -f airflow-values-claim.yaml{{ end }}
{{- if contains "KubernetesExecutor" .Values.airflow.executor }} -f airflow-values-kubernetes.yaml{{ end }}
{{- if contains "," .Values.airflow.executor }} --set 'executor={{ replace "," "\\," .Values.airflow.executor }}'{{ end }}
{{- with include "airloop.airflowImage" (dict "images" .Values.images "written" $written) }} --set-string '{{ . }}'{{ end }}
{{- if ne (include "airloop.fullname" .) "airloop" }}
They are written for the name airloop; here it is {{ include "airloop.fullname" . }}: change the names in them.
{{- end }}
{{- if and $claim (or .Values.state.claim.existing (ne .Values.state.claim.path "/var/lib/airloop")) }}
airflow-values-claim.yaml is written for another volume: in it, give claimName {{ include "airloop.claim" . }} and mountPath {{ .Values.state.claim.path }}.
{{- end }}
{{- $told := list }}
{{- range $name, $from := include "airloop.secrets" . | fromYaml }}
{{- $told = append $told (printf "  - {envName: %s, secretName: %s, secretKey: %s}" $name $from.secret $from.key) }}
{{- end }}
{{- $expected := list }}
{{- range $written.secret }}
{{- $expected = append $expected (printf "  - {envName: %s, secretName: %s, secretKey: %s}" .envName .secretName .secretKey) }}
{{- end }}
{{- if and (not $claim) (ne (sortAlpha $told | join "\n") (sortAlpha $expected | join "\n")) }}
airflow-values.yaml is written for other Secrets: in it, give
{{ if $told }}secret:
{{ sortAlpha $told | join "\n" }}
{{- else }}secret: []
{{- end }}
{{- end }}
{{- end -}}

{{- /* Values of Airflow's chart for its image, where they are others than what is written. images: of this chart */ -}}
{{- define "airloop.airflowImage" -}}
{{- $set := list -}}
{{- if ne .images.control (printf "%s:%s" .written.defaultAirflowRepository .written.defaultAirflowTag) -}}
{{- /* Cut where that chart and Airflow join it, at the last colon, a digest's too: of tasks' pods they know no other way to say one. A registry's port is none. */ -}}
{{- $tag := regexFind ":[^/:]+$" .images.control -}}
{{- $set = append $set (printf "defaultAirflowRepository=%s" (trimSuffix $tag .images.control)) -}}
{{- $set = append $set (printf "defaultAirflowTag=%s" (trimPrefix ":" $tag | default "latest")) -}}
{{- end -}}
{{- if ne .images.pullPolicy "IfNotPresent" -}}
{{- $set = append $set (printf "images.airflow.pullPolicy=%s,images.pod_template.pullPolicy=%s" .images.pullPolicy .images.pullPolicy) -}}
{{- end -}}
{{- with .images.pullSecrets -}}
{{- $set = append $set (printf "imagePullSecrets={%s}" (join "," .)) -}}
{{- end -}}
{{- join "," $set -}}
{{- end -}}
