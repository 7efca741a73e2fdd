package observe

import (
	"regexp"

	"github.com/prometheus/common/model"
)

// placeholder is where a legend has the value of a label.
var placeholder = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// legend names a series as Grafana does: by its labels, put into the legend of its
// query.
func legend(format string, labels model.Metric) string {
	if format == "" {
		if len(labels) == 0 {
			return "Value"
		}
		return labels.String()
	}
	return placeholder.ReplaceAllStringFunc(format, func(p string) string {
		return string(labels[model.LabelName(placeholder.FindStringSubmatch(p)[1])])
	})
}

// legendLabels are the labels that a legend has the values of.
func legendLabels(format string) []string {
	var all []string
	for _, m := range placeholder.FindAllStringSubmatch(format, -1) {
		all = append(all, m[1])
	}
	return all
}
