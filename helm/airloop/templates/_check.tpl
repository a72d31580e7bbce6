{{- /*
What no schema can say clearly: what was found, what is expected, what to do. Types and choices are the schema's.
*/ -}}

{{- define "airloop.refuse" -}}
{{- fail (printf "\n\n%s\n" .) -}}
{{- end -}}

{{- /* name, value, pattern, expected, optional */ -}}
{{- define "airloop.checkText" -}}
{{- if and (not .value) (not .optional) -}}
{{- include "airloop.refuse" (printf "%s is empty; give %s" .name .expected) -}}
{{- end -}}
{{- if and .value (not (regexMatch .pattern .value)) -}}
{{- include "airloop.refuse" (printf "%s is %q; give %s" .name .value .expected) -}}
{{- end -}}
{{- end -}}

{{- /* name, value, kinds, example, optional: an address without a password */ -}}
{{- define "airloop.checkAddress" -}}
{{- if and .value (regexMatch "://[^/@]*:[^@]*@|(?i)[?&]pass(word|wd)?=" .value) -}}
{{- include "airloop.refuse" (printf "%s holds a password, and values are no place for one: they are kept in the release and shown to many; give it without, like %s, and name the Secret that has the password" .name .example) -}}
{{- end -}}
{{- include "airloop.checkText" (dict "name" .name "value" .value "optional" .optional "pattern" (printf "^(%s)://[^\\s/]+%s" (join "|" .kinds) (.more | default "")) "expected" (printf "an address like %s" .example)) -}}
{{- end -}}

{{- /* name, value, or a table of values */ -}}
{{- define "airloop.checkAmount" -}}
{{- if kindIs "map" .value -}}
{{- range $key, $amount := .value -}}
{{- include "airloop.checkAmount" (dict "name" (printf "%s.%s" $.name $key) "value" $amount) -}}
{{- end -}}
{{- else if kindIs "string" .value -}}
{{- include "airloop.checkText" (dict "name" .name "value" .value "optional" true "pattern" "^([0-9]+(\\.[0-9]*)?|\\.[0-9]+)(m|[kMGTP]|[KMGTP]i)?$" "expected" "an amount as Kubernetes writes it, like 500m, 2 or 4Gi") -}}
{{- end -}}
{{- end -}}

{{- /* name, value */ -}}
{{- define "airloop.checkRange" -}}
{{- $byte := "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])" -}}
{{- $four := printf "%s(\\.%s){3}/(3[0-2]|[12]?[0-9])" $byte $byte -}}
{{- $six := "[0-9a-fA-F]*:[0-9a-fA-F:]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9])" -}}
{{- include "airloop.checkText" (dict "name" .name "value" .value "pattern" (printf "^(%s|%s)$" $four $six) "expected" "a range of addresses, like 10.0.0.0/24") -}}
{{- end -}}

{{- define "airloop.checkSweep" -}}
{{- if .Values.sweep.enabled -}}
{{- $part := "(\\*|[0-9A-Za-z]{1,3}(-[0-9A-Za-z]{1,3})?)(/[0-9]{1,2})?" -}}
{{- $field := printf "%s(,%s)*" $part $part -}}
{{- include "airloop.checkText" (dict "name" "sweep.schedule" "value" .Values.sweep.schedule "pattern" (printf "^(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|%s( +%s){4})$" $field $field) "expected" "a time as cron has it, like 17 * * * * (each hour) or @daily") -}}
{{- $secret := "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$" -}}
{{- if contains "://" .Values.sweep.database.secret -}}
{{- include "airloop.refuse" "sweep.database.secret holds an address, and values are no place for its password: they are kept in the release and shown to many; give the name of the Secret that has it, like airloop-airflow-database" -}}
{{- end -}}
{{- include "airloop.checkText" (dict "name" "sweep.database.secret" "value" .Values.sweep.database.secret "pattern" $secret "expected" "the name of the Secret that has the address of Airflow's database, like airloop-airflow-database") -}}
{{- include "airloop.checkText" (dict "name" "sweep.database.key" "value" .Values.sweep.database.key "pattern" "^[\\w.-]+$" "expected" "the key of that address in its Secret, like connection") -}}
{{- if .Values.sweep.fernetKey.secret -}}
{{- include "airloop.checkText" (dict "name" "sweep.fernetKey.secret" "value" .Values.sweep.fernetKey.secret "pattern" $secret "expected" "the name of the Secret that has Airflow's fernet key, like airflow-fernet-key") -}}
{{- include "airloop.checkText" (dict "name" "sweep.fernetKey.key" "value" .Values.sweep.fernetKey.key "pattern" "^[\\w.-]+$" "expected" "the key in that Secret, like fernet-key") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "airloop.check" -}}
{{- $image := "^[a-z0-9][a-zA-Z0-9._/-]*(:[0-9]+/[a-zA-Z0-9._/-]+)?(:[\\w][\\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$" -}}
{{- include "airloop.checkText" (dict "name" "images.control" "value" .Values.images.control "pattern" $image "expected" "an image like registry.example.com/airloop/control:0.1.0 or …@sha256:…") -}}
{{- range $variant, $reference := .Values.images.payload -}}
{{- include "airloop.checkText" (dict "name" (printf "images.payload.%s" $variant) "value" $reference "pattern" $image "expected" "an image like registry.example.com/airloop/payload:0.1.0 or …@sha256:…") -}}
{{- end -}}
{{- $label := "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" -}}
{{- include "airloop.checkText" (dict "name" "fullnameOverride" "value" .Values.fullnameOverride "optional" true "pattern" "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" "expected" "at most 40 lower-case letters, digits and hyphens, like airloop") -}}
{{- include "airloop.checkText" (dict "name" "steps.namespace" "value" .Values.steps.namespace "optional" true "pattern" $label "expected" "the name of a namespace, like loops-steps") -}}
{{- range $number, $class := .Values.priorityClasses -}}
{{- include "airloop.checkText" (dict "name" (printf "priorityClasses[%d].name" $number) "value" $class.name "pattern" $label "expected" "lower-case letters, digits and hyphens, like airloop-batch") -}}
{{- end -}}
{{- range $number, $volume := .Values.pods.volumes -}}
{{- include "airloop.checkText" (dict "name" (printf "pods.volumes[%d].path" $number) "value" $volume.path "pattern" "^(/[\\w.-]+)+$" "expected" "the path of a folder below /, like /srv/data") -}}
{{- end -}}
{{- range $store, $given := .Values.networkPolicy.stores -}}
{{- range $number, $cidr := $given.cidrs -}}
{{- include "airloop.checkRange" (dict "name" (printf "networkPolicy.stores.%s.cidrs[%d]" $store $number) "value" $cidr) -}}
{{- end -}}
{{- end -}}
{{- range $number, $cidr := .Values.networkPolicy.dns.cidrs -}}
{{- include "airloop.checkRange" (dict "name" (printf "networkPolicy.dns.cidrs[%d]" $number) "value" $cidr) -}}
{{- end -}}
{{- range $number, $cidr := .Values.networkPolicy.apiServer.cidrs -}}
{{- include "airloop.checkRange" (dict "name" (printf "networkPolicy.apiServer.cidrs[%d]" $number) "value" $cidr) -}}
{{- end -}}
{{- include "airloop.checkSweep" . -}}
{{- range $name, $value := dict "mlflow.resources.requests" .Values.mlflow.resources.requests "mlflow.resources.limits" .Values.mlflow.resources.limits "sweep.resources.requests" .Values.sweep.resources.requests "sweep.resources.limits" .Values.sweep.resources.limits "quota.hard" .Values.quota.hard "state.claim.size" .Values.state.claim.size -}}
{{- include "airloop.checkAmount" (dict "name" $name "value" $value) -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- if has $name (list "sizes" "home" "warehouse" "artifacts" "catalog" "mlflow") -}}
{{- include "airloop.refuse" (printf "settings.%s is made from other values; set state, catalog, mlflow or pods instead" $name) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.state.kind "claim" -}}
{{- include "airloop.checkText" (dict "name" "state.claim.path" "value" .Values.state.claim.path "pattern" "^(/[\\w.-]+)+$" "expected" "the path of a folder below /, like /var/lib/airloop") -}}
{{- if and .Values.steps.namespace (ne .Values.steps.namespace .Release.Namespace) -}}
{{- include "airloop.refuse" (printf "steps.namespace is %q, and a claim can be mounted in its own namespace only, which Airflow has to share; leave steps.namespace empty, or set state.kind to s3" .Values.steps.namespace) -}}
{{- end -}}
{{- if or .Values.mlflow.deploy .Values.catalog.address -}}
{{- include "airloop.refuse" "mlflow.deploy and catalog.address are used with state.kind s3 only; with claim, the catalog and MLflow's store are SQLite files in the volume. Set state.kind to s3, or leave them out" -}}
{{- end -}}
{{- else -}}
{{- $s3 := "^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\\w.=+-]+)*/?$" -}}
{{- range $name := list "warehouse" "artifacts" -}}
{{- include "airloop.checkText" (dict "name" (printf "state.s3.%s" $name) "value" (get $.Values.state.s3 $name) "pattern" $s3 "expected" (printf "s3://bucket/prefix, like s3://airloop/%s" $name)) -}}
{{- end -}}
{{- include "airloop.checkAddress" (dict "name" "state.s3.endpoint" "value" .Values.state.s3.endpoint "optional" true "kinds" (list "https?") "example" "http://minio.data.svc:9000") -}}
{{- if hasPrefix "rest+" .Values.catalog.address -}}
{{- include "airloop.checkAddress" (dict "name" "catalog.address" "value" .Values.catalog.address "kinds" (list "rest\\+https?") "example" "rest+https://catalog.data.svc:8181/iceberg?warehouse=lake") -}}
{{- if not .Values.settings.locks -}}
{{- include "airloop.refuse" "settings.locks is empty: a REST catalog has no locks, and pods need some; give the address of a PostgreSQL, like postgresql+psycopg://airloop@postgresql.data.svc:5432/airloop" -}}
{{- end -}}
{{- if not .Values.feastRegistry.address -}}
{{- include "airloop.refuse" "feastRegistry.address is empty, and a REST catalog has no place for the registry; give the address of a PostgreSQL, like postgresql+psycopg://airloop@postgresql.data.svc:5432/feast" -}}
{{- end -}}
{{- else -}}
{{- include "airloop.checkAddress" (dict "name" "catalog.address" "value" .Values.catalog.address "kinds" (list "postgresql\\+psycopg") "more" "/[^\\s/?]+" "example" "postgresql+psycopg://airloop@postgresql.data.svc:5432/airloop, or of a REST catalog, like rest+https://catalog.data.svc:8181?warehouse=lake") -}}
{{- end -}}
{{- include "airloop.checkAddress" (dict "name" "settings.locks" "value" .Values.settings.locks "optional" true "kinds" (list "postgresql\\+psycopg") "more" "/[^\\s/?]+" "example" "postgresql+psycopg://airloop@postgresql.data.svc:5432/airloop") -}}
{{- include "airloop.checkAddress" (dict "name" "feastRegistry.address" "value" .Values.feastRegistry.address "optional" true "kinds" (list "postgresql\\+psycopg") "more" "/[^\\s/?]+" "example" "postgresql+psycopg://airloop@postgresql.data.svc:5432/feast") -}}
{{- if and .Values.mlflow.address .Values.mlflow.deploy -}}
{{- include "airloop.refuse" "mlflow.address and mlflow.deploy are both set; give the address of a server that is there, or let one be deployed" -}}
{{- end -}}
{{- if not (or .Values.mlflow.address .Values.mlflow.deploy) -}}
{{- include "airloop.refuse" "there is no MLflow: with state.kind s3 pods need a server; set mlflow.address, like http://mlflow.data.svc:5000, or mlflow.deploy: true" -}}
{{- end -}}
{{- if and (not .Values.onlineStore.address) (not .Values.onlineStore.from.secret) -}}
{{- include "airloop.refuse" "there is no online store: with state.kind s3 pods share no file; set onlineStore.address, like redis://redis.data.svc:6379/0, or onlineStore.from.secret" -}}
{{- end -}}
{{- end -}}
{{- include "airloop.checkAddress" (dict "name" "mlflow.address" "value" .Values.mlflow.address "optional" true "kinds" (list "https?") "example" "http://mlflow.data.svc:5000") -}}
{{- if .Values.mlflow.deploy -}}
{{- include "airloop.checkAddress" (dict "name" "mlflow.database.address" "value" .Values.mlflow.database.address "kinds" (list "postgresql\\+psycopg") "more" "/[^\\s/?]+" "example" "postgresql+psycopg://mlflow@postgresql.data.svc:5432/mlflow") -}}
{{- include "airloop.checkText" (dict "name" "mlflow.artifacts" "value" .Values.mlflow.artifacts "pattern" "^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\\w.=+-]+)*/?$" "expected" "s3://bucket/prefix, like s3://airloop/mlflow") -}}
{{- end -}}
{{- include "airloop.checkAddress" (dict "name" "onlineStore.address" "value" .Values.onlineStore.address "optional" true "kinds" (list "rediss?") "example" "redis://redis.data.svc:6379/0") -}}
{{- if and .Values.onlineStore.address .Values.onlineStore.from.secret -}}
{{- include "airloop.refuse" "onlineStore.address and onlineStore.from.secret are both set; keep the one that is right" -}}
{{- end -}}
{{- include "airloop.checkPods" . -}}
{{- $made := list "AIRLOOP_HOME" "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "PGPASSWORD" -}}
{{- range $name, $value := .Values.pods.environment -}}
{{- if regexMatch "(?i)(password|secret|token|_key$|access_key)" $name -}}
{{- include "airloop.refuse" (printf "pods.environment.%s looks like a secret, and would be plain to all who may see pods; put it into a Secret and name that in pods.secrets: {%s: {secret: NAME, key: KEY}}" $name $name) -}}
{{- end -}}
{{- if has $name $made -}}
{{- include "airloop.refuse" (printf "pods.environment.%s is made from other values; set state or catalog instead" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
