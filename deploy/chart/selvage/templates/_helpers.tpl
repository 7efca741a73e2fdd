{{/* What selects the pods. It cannot be changed once there is a DaemonSet. */}}
{{- define "selvage.selector" -}}
app.kubernetes.io/name: selvage
app.kubernetes.io/component: agent
{{- end }}

{{/* The labels of everything, the pods among it. */}}
{{- define "selvage.podLabels" -}}
app.kubernetes.io/name: selvage
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: selvage
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end }}

{{/* The labels of objects that Helm makes itself. */}}
{{- define "selvage.labels" -}}
{{ include "selvage.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "selvage.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{/* Where the kubelet asks: on the node itself. */}}
{{- define "selvage.probe" -}}
httpGet:
  host: {{ if hasPrefix "[::1]" .Values.agent.httpAddress }}"::1"{{ else }}127.0.0.1{{ end }}
  port: http
{{- end }}

{{/* Whether the API server is of this version, or a later one. */}}
{{- define "selvage.since" -}}
{{- if semverCompare (printf ">=%s.0-0" .version) .root.Capabilities.KubeVersion.Version }}yes{{ end }}
{{- end }}
