{{- define "gearshift.labels" -}}
app.kubernetes.io/name: gearshift
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "gearshift.selector" -}}
app.kubernetes.io/name: gearshift
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gearshift.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "gearshift.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "gearshift.container-security" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end }}

{{- define "gearshift.database" -}}
{{- if .Values.control.usesPostgresql }}
- name: GEARSHIFT_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.existingSecret }}
      key: database-url
{{- end }}
{{- end }}
