{{- /*
Sizes and pools: what the pod runner would refuse when a DAG is parsed or a task starts is refused here, in the same words as far
as they fit (airloop_operators.runners.pod.sizes; a test gives both the same wrong values).
*/ -}}

{{- /* An amount as a plain number: 2Gi is 2147483648. */ -}}
{{- define "airloop.number" -}}
{{- $unit := toString . | regexFind "[a-zA-Z]+$" -}}
{{- $scale := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- mulf (toString . | trimSuffix $unit | float64) (get $scale $unit) -}}
{{- end -}}

{{- define "airloop.checkPods" -}}
{{- $accelerators := .Files.Get "accelerators.yaml" | fromYaml -}}
{{- range $name, $pool := .Values.pods.pools -}}
{{- include "airloop.checkPool" (dict "root" $ "name" (printf "pods.pools.%s" $name) "pool" $pool "kinds" $accelerators) -}}
{{- end -}}
{{- range $name, $size := .Values.pods.sizes -}}
{{- include "airloop.checkSize" (dict "root" $ "name" (printf "pods.sizes.%s" $name) "size" $size "kinds" $accelerators) -}}
{{- end -}}
{{- with .Values.pods -}}
{{- if not (hasKey .sizes .default) -}}
{{- include "airloop.refuse" (printf "pods.default is %q, which is no size; pods.sizes has: %s" .default (keys .sizes | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $pool := get (.pools | default dict) (get (get .sizes .default) "pool" | default "") | default dict -}}
{{- if $pool.budget -}}
{{- include "airloop.refuse" (printf "pods.default is %q, whose accelerators are counted (budget %s), and tasks that name no size are not; take another default" .default $pool.budget) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* root, name, pool, kinds */ -}}
{{- define "airloop.checkPool" -}}
{{- $pool := .pool -}}
{{- $kind := $pool.accelerator | default "cpu" -}}
{{- $its := get .kinds $kind -}}
{{- $accelerated := ne $its.variant "cpu" -}}
{{- if not (or $pool.image (hasKey .root.Values.images.payload $its.variant)) -}}
{{- include "airloop.refuse" (printf "%s has accelerator %q, whose image is images.payload.%s, and there is none; images.payload has: %s" .name $kind $its.variant (keys .root.Values.images.payload | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if and $pool.resource (not $accelerated) -}}
{{- include "airloop.refuse" (printf "%s.resource is %q, and accelerator %q has no resource; leave it out, or give the accelerator" .name $pool.resource $kind) -}}
{{- end -}}
{{- if and $accelerated (not (or $pool.resource $its.resource)) -}}
{{- include "airloop.refuse" (printf "%s.resource is empty, and accelerator %q has none of its own; give it: the instance's, like nvidia.com/mig-1g.10gb" .name $kind) -}}
{{- end -}}
{{- if $pool.resource -}}
{{- $vendor := index (splitList "/" $pool.resource) 0 -}}
{{- range $other, $others := .kinds -}}
{{- if and $others.resource (hasPrefix (printf "%s/" $vendor) $others.resource) (ne $others.variant $its.variant) -}}
{{- include "airloop.refuse" (printf "%s.resource is %q, which is not of accelerator %q; write accelerator: %s, or a resource of %s" $.name $pool.resource $kind $other $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $pool.backend (not (has $pool.backend $its.backends)) -}}
{{- include "airloop.refuse" (printf "%s.backend is %q, which does not work on accelerator %q; possible: %s" .name $pool.backend $kind (join ", " $its.backends)) -}}
{{- end -}}
{{- if and $pool.queue (not $pool.gang) -}}
{{- include "airloop.refuse" (printf "%s.queue is %q, and nobody's; say whose: gang: kueue or volcano" .name $pool.queue) -}}
{{- end -}}
{{- if and (eq ($pool.gang | default "") "kueue") (not $pool.queue) -}}
{{- include "airloop.refuse" (printf "%s.gang is kueue, and there is no queue; give queue: NAME, a LocalQueue of the pods' namespace" .name) -}}
{{- end -}}
{{- if and (eq ($pool.gang | default "") "volcano") (not (has ($pool.scheduler | default "volcano") (list "volcano"))) -}}
{{- include "airloop.refuse" (printf "%s.gang is volcano, and the scheduler is %q; leave out scheduler, or gang" .name $pool.scheduler) -}}
{{- end -}}
{{- if $pool.budget -}}
{{- if not (hasKey (.root.Values.pods.budgets | default dict) $pool.budget) -}}
{{- include "airloop.refuse" (printf "%s.budget is %q, which is not there; pods.budgets has: %s" .name $pool.budget (keys (.root.Values.pods.budgets | default dict) | sortAlpha | join ", " | default "none")) -}}
{{- end -}}
{{- if not $accelerated -}}
{{- include "airloop.refuse" (printf "%s.budget is %q, and accelerator %q has none to count; leave it out, or use Airflow's own pools on the tasks" .name $pool.budget $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* root, name, size, kinds */ -}}
{{- define "airloop.checkSize" -}}
{{- $size := .size -}}
{{- $pools := .root.Values.pods.pools | default dict -}}
{{- if and $size.pool (not (hasKey $pools $size.pool)) -}}
{{- include "airloop.refuse" (printf "%s.pool is %q, which is not there; pods.pools has: %s" .name $size.pool (keys $pools | sortAlpha | join ", " | default "none")) -}}
{{- end -}}
{{- $pool := get $pools ($size.pool | default "") | default dict -}}
{{- $kind := $pool.accelerator | default "cpu" -}}
{{- $its := get .kinds $kind -}}
{{- $count := int ($size.accelerators | default 0) -}}
{{- if and (ne $its.variant "cpu") (not $count) -}}
{{- include "airloop.refuse" (printf "%s has no accelerators, and its pool %q is of %s; give accelerators: 1 or more, or a pool without them" .name $size.pool $kind) -}}
{{- end -}}
{{- if and $count (eq $its.variant "cpu") -}}
{{- include "airloop.refuse" (printf "%s has accelerators: %d, and %q has none; give it a pool that has" .name $count $kind) -}}
{{- end -}}
{{- if and $its.most (gt $count (int $its.most)) -}}
{{- include "airloop.refuse" (printf "%s has accelerators: %d; a pod can use %d of %s" .name $count (int $its.most) $kind) -}}
{{- end -}}
{{- if $pool.budget -}}
{{- $slots := int (get .root.Values.pods.budgets $pool.budget) -}}
{{- if gt $count $slots -}}
{{- include "airloop.refuse" (printf "%s has accelerators: %d, and its budget %s is %d: its tasks would wait for ever" .name $count $pool.budget $slots) -}}
{{- end -}}
{{- end -}}
{{- include "airloop.checkAmount" (dict "name" .name "value" (pick $size "cpu" "memory" "requests" "shared_memory" "scratch")) -}}
{{- $limits := dict "cpu" ($size.cpu | default "1") "memory" ($size.memory | default "2Gi") -}}
{{- range $key, $amount := dict "cpu" $limits.cpu "memory" $limits.memory "shared_memory" ($size.shared_memory | default "1m") "scratch" ($size.scratch | default "1m") -}}
{{- if le (include "airloop.number" $amount | float64) 0.0 -}}
{{- include "airloop.refuse" (printf "%s.%s is %v; give an amount above 0" $.name $key $amount) -}}
{{- end -}}
{{- end -}}
{{- range $key, $amount := $size.requests -}}
{{- if gt (include "airloop.number" $amount | float64) (include "airloop.number" (get $limits $key) | float64) -}}
{{- include "airloop.refuse" (printf "%s.requests.%s %v is above %v; requests are at most the limits" $.name $key $amount (get $limits $key)) -}}
{{- end -}}
{{- end -}}
{{- if and $size.shared_memory (ge (include "airloop.number" $size.shared_memory | float64) (include "airloop.number" $limits.memory | float64)) -}}
{{- include "airloop.refuse" (printf "%s.shared_memory %v is not less than memory %v; it is part of the limit: raise memory" .name $size.shared_memory $limits.memory) -}}
{{- end -}}
{{- end -}}
