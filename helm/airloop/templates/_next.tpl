{{- /* How Airflow is installed so that it fits these values, for NOTES.txt. */ -}}
{{- define "airloop.nextSteps" -}}
{{- $claim := eq .Values.state.kind "claim" -}}
Airflow comes from its own chart, with values that are beside this one. It needs a PostgreSQL, whose address
(postgresql://…) is in Secret airloop-airflow-database, key connection:
  helm upgrade --install airflow apache-airflow/airflow --version 1.22.0 -n {{ .Release.Namespace }} -f airflow-values.yaml
{{- if $claim }} -f airflow-values-claim.yaml{{ end }}
{{- if contains "KubernetesExecutor" .Values.airflow.executor }} -f airflow-values-kubernetes.yaml{{ end }}
{{- if contains "," .Values.airflow.executor }} --set 'executor={{ replace "," "\\," .Values.airflow.executor }}'{{ end }}
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
{{- $written := list }}
{{- range (.Files.Get "airflow-values.yaml" | fromYaml).secret }}
{{- $written = append $written (printf "  - {envName: %s, secretName: %s, secretKey: %s}" .envName .secretName .secretKey) }}
{{- end }}
{{- if and (not $claim) (ne (sortAlpha $told | join "\n") (sortAlpha $written | join "\n")) }}
airflow-values.yaml is written for other Secrets: in it, give
{{ if $told }}secret:
{{ sortAlpha $told | join "\n" }}
{{- else }}secret: []
{{- end }}
{{- end }}
{{- end -}}
