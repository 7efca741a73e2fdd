package deploy_test

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	gocmp "github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	schemacel "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// crdName is the key of the CRD among objects.
const crdName = "CustomResourceDefinition ippools.selvage.dev"

// poolCRD returns the CRD as an API server has it, with defaults.
func poolCRD(t *testing.T) *apiextensions.CustomResourceDefinition {
	t.Helper()
	crd, ok := kustomize(t, "pools")[crdName].(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		t.Fatal("deploy/pools has no CRD")
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	scheme.Default(crd)
	var internal apiextensions.CustomResourceDefinition
	if err := scheme.Convert(crd, &internal, nil); err != nil {
		t.Fatal(err)
	}
	return &internal
}

// TestCRD has the code of an API server judge the CRD itself: its schema, and that
// its rules can be compiled and are within the budget.
func TestCRD(t *testing.T) {
	crd := poolCRD(t)
	crd.Status.StoredVersions = []string{"v1alpha1"}
	for _, err := range crdvalidation.ValidateCustomResourceDefinition(t.Context(), crd) {
		t.Error(err)
	}
}

// TestOldestServer sees that all expressions can be compiled by the oldest API server
// that pools are for.
func TestOldestServer(t *testing.T) {
	// A server takes new expressions that the one before it can read.
	before := version.MajorMinor(1, 30)
	set, err := environment.MustBaseEnvSet(before).Extend(environment.VersionedOptions{
		IntroducedVersion: before,
		EnvOptions: []cel.EnvOption{
			cel.Variable("self", cel.DynType), cel.Variable("oldSelf", cel.DynType),
			cel.Variable("object", cel.DynType), cel.Variable("params", cel.DynType), cel.Variable("variables", cel.DynType),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	env, err := set.Env(environment.NewExpressions)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range expressions(t) {
		if _, issues := env.Compile(e); issues.Err() != nil {
			t.Errorf("%s: %v", e, issues.Err())
		}
	}
}

// expressions returns those of the CRD and of the policies beside it.
func expressions(t *testing.T) []string {
	t.Helper()
	var all []string
	var rules func(p apiextensionsv1.JSONSchemaProps)
	rules = func(p apiextensionsv1.JSONSchemaProps) {
		for _, v := range p.XValidations {
			all = append(all, v.Rule, v.MessageExpression)
		}
		for _, child := range p.Properties {
			rules(child)
		}
		if p.Items != nil {
			rules(*p.Items.Schema)
		}
	}
	for _, o := range kustomize(t, "pools") {
		switch o := o.(type) {
		case *apiextensionsv1.CustomResourceDefinition:
			rules(*o.Spec.Versions[0].Schema.OpenAPIV3Schema)
		case *admissionv1.ValidatingAdmissionPolicy:
			for _, v := range o.Spec.Variables {
				all = append(all, v.Expression)
			}
			for _, v := range o.Spec.Validations {
				all = append(all, v.Expression, v.MessageExpression)
			}
		}
	}
	all = slices.DeleteFunc(all, func(e string) bool { return e == "" })
	if len(all) < 20 {
		t.Fatalf("only %d expressions: %q", len(all), all)
	}
	return all
}

// poolJudge judges IPPools with the code of an API server, but for metadata.
type poolJudge struct {
	schema *schema.Structural
	types  validation.SchemaValidator
	rules  *schemacel.Validator
}

func newPoolJudge(t *testing.T) *poolJudge {
	t.Helper()
	props, err := apiextensions.GetSchemaForVersion(poolCRD(t), "v1alpha1")
	if err != nil {
		t.Fatal(err)
	}
	structural, err := schema.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	types, _, err := validation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	return &poolJudge{structural, types, schemacel.NewValidator(structural, true, celconfig.PerCallLimit)}
}

// judge returns what is wrong with a pool, or with the update of one to it if before is
// not nil. Both get their defaults.
func (j *poolJudge) judge(t *testing.T, pool, before map[string]any) field.ErrorList {
	t.Helper()
	defaulting.Default(pool, j.schema)
	errs := validation.ValidateCustomResource(nil, pool, j.types)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, j.schema, pool)...)
	if slices.ContainsFunc(errs, blocks) {
		return errs
	}
	var old any
	if before != nil {
		defaulting.Default(before, j.schema)
		old = before
	}
	wrong, _ := j.rules.Validate(t.Context(), nil, j.schema, pool, old, celconfig.RuntimeCELCostBudget)
	return append(errs, wrong...)
}

// blocks tells whether an API server does not look at the rules because of an error.
func blocks(e *field.Error) bool {
	switch e.Type {
	case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
		return true
	default:
		return false
	}
}

// poolCase is an entry of testdata/ippools.yaml.
type poolCase struct {
	What    string         `json:"what"`
	Name    string         `json:"name"`
	Spec    map[string]any `json:"spec"`
	Then    map[string]any `json:"then"`
	Field   string         `json:"field"`
	Refused string         `json:"refused"`
}

// pool returns an IPPool with a spec.
func (c *poolCase) pool(spec map[string]any) map[string]any {
	name := cmp.Or(c.Name, "pool")
	return map[string]any{"apiVersion": "selvage.dev/v1alpha1", "kind": "IPPool", "metadata": map[string]any{"name": name}, "spec": spec}
}

// TestPools has the code of an API server judge pools by the CRD.
func TestPools(t *testing.T) {
	text, err := os.ReadFile("testdata/ippools.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if text, err = yaml.YAMLToJSONStrict(text); err != nil {
		t.Fatal(err)
	}
	var cases []poolCase
	// As an API server reads numbers.
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	j := newPoolJudge(t)
	for _, c := range cases {
		pool, before := c.pool(c.Spec), map[string]any(nil)
		if c.Then != nil {
			if errs := j.judge(t, pool, nil); len(errs) > 0 {
				t.Errorf("%s %v: %v", c.What, c.Spec, errs)
			}
			pool, before = c.pool(c.Then), pool
		}
		errs := j.judge(t, pool, before)
		if c.Refused == "" {
			if len(errs) > 0 {
				t.Errorf("%s %v, then %v: %v", c.What, c.Spec, c.Then, errs)
			}
			continue
		}
		if !slices.ContainsFunc(errs, func(e *field.Error) bool {
			return strings.TrimPrefix(e.Field, "<nil>") == c.Field && strings.Contains(e.Error(), c.Refused)
		}) {
			t.Errorf("%s %v, then %v: %v, want %q at %q", c.What, c.Spec, c.Then, errs, c.Refused, c.Field)
		}
	}
}

// TestExamples sees that an API server would take the examples, all of them together.
func TestExamples(t *testing.T) {
	text, err := os.ReadFile("examples/ippool.yaml")
	if err != nil {
		t.Fatal(err)
	}
	j := newPoolJudge(t)
	var taken []netip.Prefix
	for document := range strings.SplitSeq(string(text), "---\n") {
		var pool map[string]any
		if err := yaml.UnmarshalStrict([]byte(document), &pool); err != nil {
			t.Fatal(err)
		}
		for _, err := range j.judge(t, pool, nil) {
			t.Errorf("%v\n%s", err, document)
		}
		for _, text := range pool["spec"].(map[string]any)["cidrs"].([]any) {
			block := netip.MustParsePrefix(text.(string))
			if slices.ContainsFunc(taken, block.Overlaps) {
				t.Errorf("%s is in another example, too", block)
			}
			taken = append(taken, block)
		}
		if pruned := pruning.PruneWithOptions(pool, j.schema, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}); len(pruned) > 0 {
			t.Errorf("unknown fields %v\n%s", pruned, document)
		}
	}
}

// TestUninstall sees that nobody who takes the agents away takes the IPPools away with
// them.
func TestUninstall(t *testing.T) {
	for from, all := range every(t) {
		if from != "chart" && all[crdName] != nil {
			t.Errorf("%s: `kubectl delete -k` would delete the CRD, and all IPPools with it", from)
		}
	}
	crd, ok := mustHelm(t, "")[crdName].(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		t.Fatal("the chart has no CRD")
	}
	if crd.Annotations["helm.sh/resource-policy"] != "keep" {
		t.Errorf("`helm uninstall` would delete the CRD, whose annotations are %v", crd.Annotations)
	}
}

// TestPoolValues sees what of the API of IPPools the chart leaves out where it is not
// wanted, or would not be taken.
func TestPoolValues(t *testing.T) {
	const (
		overlap  = "ValidatingAdmissionPolicy ippool-overlap.selvage.dev"
		node     = "ValidatingAdmissionPolicy ippool-holds-node.selvage.dev"
		services = "ValidatingAdmissionPolicy ippool-holds-services.selvage.dev"
	)
	for _, c := range []struct {
		server, values string
		want           []string
	}{
		{"v1.33.0", "", []string{crdName, node, services, overlap}},
		{"v1.33.0-gke.1", "", []string{crdName, node, services, overlap}},
		{"v1.32.9", "", []string{crdName, node, overlap}},
		{"v1.31.0+k3s1", "", []string{crdName, node, overlap}},
		{"v1.30.14", "", nil},
		{"v1.36.0", "pools: {crd: {enabled: false}}", []string{node, services, overlap}},
		{"v1.36.0", "pools: {admission: {enabled: false}}", []string{crdName}},
	} {
		rendered, err := helmOn(t, c.server, c.values)
		if err != nil {
			t.Errorf("%s, %s: %v", c.server, c.values, err)
			continue
		}
		var got []string
		for name := range decodeChart(t, rendered) {
			switch {
			case name == crdName, strings.HasPrefix(name, "ValidatingAdmissionPolicy "):
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if diff := gocmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s, %s (-want +got):\n%s", c.server, c.values, diff)
		}
		old := strings.Contains(rendered["selvage/templates/NOTES.txt"], "There are no IPPools")
		if old != (c.want == nil) {
			t.Errorf("%s, %s: the notes say that it is too old: %v", c.server, c.values, old)
		}
	}
}
