package observe

import (
	"math"
	"strconv"
)

// prefix is one of a unit's: values from its size on are written with it.
type prefix struct {
	size float64
	name string
}

// The prefixes, from the largest on.
func decimal() []prefix {
	return []prefix{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {1, ""}, {1e-3, "m"}, {1e-6, "µ"}}
}

func counting() []prefix {
	return []prefix{{1e18, "Quint"}, {1e15, "Quadr"}, {1e12, "Tri"}, {1e9, "Bil"}, {1e6, "Mil"}, {1e3, "K"}, {1, ""}}
}

func binary() []prefix {
	return []prefix{{1 << 40, "Ti"}, {1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}, {1, ""}}
}

func durations() []prefix {
	return []prefix{{86400, " days"}, {3600, " h"}, {60, " min"}, {1, " s"}, {1e-3, " ms"}, {1e-6, " µs"}, {1e-9, " ns"}}
}

// format writes a value with its unit as Grafana does, near enough for a look.
func format(unit string, v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case math.IsInf(v, 0):
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	switch unit {
	case "percentunit":
		return digits(v*100) + " %"
	case "s":
		return scaled(v, durations(), "")
	case "bytes":
		return scaled(v, binary(), "B")
	case "bps":
		return scaled(v, decimal(), "b/s")
	case "pps":
		return scaled(v, decimal()[:5], "p/s")
	case "cps":
		return scaled(v, counting(), "c/s")
	case "short":
		return scaled(v, counting(), "")
	}
	return digits(v)
}

// scaled writes a value with the largest prefix that leaves something before the point.
func scaled(v float64, prefixes []prefix, unit string) string {
	chosen := prefixes[len(prefixes)-1]
	for _, p := range prefixes {
		if math.Abs(v) >= p.size {
			chosen = p
			break
		}
	}
	if v == 0 {
		chosen = prefix{1, zeroName(prefixes)}
	}
	out := digits(v / chosen.size)
	if name := chosen.name + unit; name != "" {
		if name[0] != ' ' {
			out += " "
		}
		out += name
	}
	return out
}

// zeroName is the name of the prefix of size 1.
func zeroName(prefixes []prefix) string {
	for _, p := range prefixes {
		if p.size == 1 {
			return p.name
		}
	}
	return ""
}

// digits writes a number with three digits that matter, and no zeros at its end.
func digits(v float64) string {
	decimals := 2
	switch a := math.Abs(v); {
	case a >= 100 || a == math.Trunc(a):
		decimals = 0
	case a >= 10:
		decimals = 1
	case a < 0.1:
		decimals = 4
	}
	f := math.Pow(10, float64(decimals))
	return strconv.FormatFloat(math.Round(v*f)/f, 'f', -1, 64)
}
