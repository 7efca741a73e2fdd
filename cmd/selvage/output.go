package main

import (
	"encoding/json"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"
)

// checkOutput checks --output; people is the format that is for them.
func checkOutput(output, people string) error {
	if output != people && output != "json" && output != "yaml" {
		return fmt.Errorf("--output: %q is none of %s, json and yaml", output, people)
	}
	return nil
}

// writeReport writes a report as JSON or YAML, or by forPeople.
func writeReport(w io.Writer, output string, report any, forPeople func(io.Writer) error) error {
	if output != "json" && output != "yaml" {
		return forPeople(w)
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if output == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
	}
	_, err = w.Write(data)
	return err
}
