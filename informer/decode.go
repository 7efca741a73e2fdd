package informer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
)

// Reason says in one word what is wrong with a manifest. It is fit for the
// label of a metric.
type Reason string

// The reasons.
const (
	// ReasonRead: a file or directory cannot be read.
	ReasonRead Reason = "read"
	// ReasonSyntax: a document is neither YAML nor JSON.
	ReasonSyntax Reason = "syntax"
	// ReasonKind: an object has no kind, or one of ours in an apiVersion that
	// is not understood.
	ReasonKind Reason = "kind"
	// ReasonField: a field is unknown, there twice, or of the wrong type.
	ReasonField Reason = "field"
	// ReasonInvalid: the object is well-formed, but the API would refuse it.
	ReasonInvalid Reason = "invalid"
	// ReasonDuplicate: another document defines the same object.
	ReasonDuplicate Reason = "duplicate"
)

// ManifestError is what is wrong with one object, document, or file.
type ManifestError struct {
	File string
	// Document counts the documents of the file from 1, Line is that of the
	// document's beginning. Both are 0 if the error concerns the whole file.
	Document, Line int
	// Kind, Namespace and Name are what is known of the object.
	Kind, Namespace, Name string
	// Field is the path of the field, if the error concerns one. Several are
	// separated by commas.
	Field  string
	Reason Reason
	Err    error

	// id is what identifies the object; its name is empty if that is not known.
	id identity
}

// about has an error speak of an object.
func (e *ManifestError) about(id identity) *ManifestError {
	e.Kind, e.Namespace, e.Name, e.id = kindInfo[id.kind].kind, id.namespace, id.name, id
	return e
}

// Object returns what is known of the object, for example
// "NetworkPolicy default/web".
func (e *ManifestError) Object() string {
	name := e.Name
	if e.Namespace != "" {
		name = e.Namespace + "/" + e.Name
	}
	return strings.TrimSpace(e.Kind + " " + name)
}

// Error is a single line.
func (e *ManifestError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Document > 0 {
		fmt.Fprintf(&b, ": document %d (line %d)", e.Document, e.Line)
	}
	if o := e.Object(); o != "" {
		b.WriteString(": " + o)
	}
	b.WriteString(": " + oneLine(e.Err.Error()))
	return b.String()
}

// Unwrap returns the cause.
func (e *ManifestError) Unwrap() error { return e.Err }

// oneLine folds text into one line; libraries answer with several.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Decode returns the objects of ours in data, which is YAML of any number of
// documents, or a stream of JSON values if name ends in .json. Objects of
// other kinds are left out. Lists are taken apart. Decoding is strict: an
// object with an unknown field is an error and not among the objects, unless it
// is Calico's, of which we know few. A NetworkPolicy that is well-formed but invalid is both: an error, and one of
// the objects, because the pods that it selects must be isolated even so.
//
// Every error is a *ManifestError that speaks of name as the file.
func Decode(name string, data []byte) ([]runtime.Object, []error) {
	var objects []runtime.Object
	var errs []error
	for _, d := range decode(name, data) {
		if d.err != nil {
			errs = append(errs, d.err)
		}
		if d.object != nil {
			objects = append(objects, d.object)
		}
	}
	return objects, errs
}

// item is one object of a file, or what was wrong with it.
type item struct {
	// id is known if id.name is not empty.
	id identity
	at where
	// object is nil if the item is of no use.
	object apiObject
	err    *ManifestError
}

// identity is what makes two objects the same one.
type identity struct {
	kind            Kind
	namespace, name string
}

// where is a place in a file.
type where struct {
	file           string
	document, line int
}

func (w where) errorf(reason Reason, format string, args ...any) *ManifestError {
	return &ManifestError{
		File: w.file, Document: w.document, Line: w.line,
		Reason: reason, Err: fmt.Errorf(format, args...),
	}
}

// decode takes a file apart, in the order in which it is written.
func decode(name string, data []byte) []item {
	if strings.EqualFold(filepath.Ext(name), ".json") {
		return decodeJSON(name, data)
	}
	var items []item
	for _, d := range splitYAML(data) {
		at := where{name, d.number, d.line}
		raw, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			items = append(items, item{at: at, err: at.errorf(ReasonSyntax, "%s", yamlError(d, err))})
			continue
		}
		items = append(items, decodeObject(at, raw, metav1.TypeMeta{})...)
	}
	return items
}

// yamlError returns what err says with line numbers that count from the
// beginning of the file. The library counts from that of the document, and
// only it knows where in its text the numbers are.
func yamlError(d yamlDocument, err error) string {
	padded := append(bytes.Repeat([]byte("\n"), d.line-1), d.text...)
	if _, again := yaml.YAMLToJSONStrict(padded); again != nil {
		err = again
	}
	text := oneLine(err.Error())
	for _, prefix := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return text
}

func decodeJSON(name string, data []byte) []item {
	data = bytes.TrimPrefix(data, byteOrderMark)
	var items []item
	dec := json.NewDecoder(bytes.NewReader(data))
	for n := 1; ; n++ {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return items
		}
		// The decoder has read raw and nothing behind it.
		start := int(dec.InputOffset()) - len(raw)
		if err != nil {
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) {
				start = int(syntax.Offset)
			}
			at := where{name, n, lineAt(data, start)}
			return append(items, item{at: at, err: at.errorf(ReasonSyntax, "%w", err)})
		}
		items = append(items, decodeObject(where{name, n, lineAt(data, start)}, raw, metav1.TypeMeta{})...)
	}
}

// lineAt returns the number of the line that offset is in.
func lineAt(data []byte, offset int) int {
	return 1 + bytes.Count(data[:max(0, min(offset, len(data)))], []byte("\n"))
}

// decodeObject decodes one object, or all those of a list. raw is valid JSON.
// An object that does not say what it is, is a def: the items of a PodList
// need not say so.
func decodeObject(at where, raw []byte, def metav1.TypeMeta) []item {
	if string(raw) == "null" {
		return nil
	}
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &head); err != nil {
		// What was understood before the error still tells which object it is.
		if head.Kind == "" {
			return []item{{at: at, err: at.errorf(ReasonSyntax, "not a Kubernetes object: %w", err)}}
		}
	}
	if head.Kind == "" && head.APIVersion == "" {
		head.TypeMeta = def
	}
	if head.Kind == "" {
		return []item{{at: at, err: at.errorf(ReasonKind, "not a Kubernetes object: kind is missing")}}
	}
	if element, ok := strings.CutSuffix(head.Kind, "List"); ok {
		return decodeList(at, raw, head.TypeMeta, element)
	}
	kind, ok := kindOf(head.TypeMeta)
	if !ok {
		if head.APIVersion != "" || len(kindsNamed(head.Kind)) == 0 {
			return nil
		}
		err := at.errorf(ReasonKind, "not a Kubernetes object: apiVersion is missing")
		err.Kind, err.Name = head.Kind, head.Metadata.Name
		return []item{{at: at, err: err}}
	}
	info := kindInfo[kind]
	id := identity{kind, head.Metadata.Namespace, head.Metadata.Name}
	if !info.namespaced {
		id.namespace = ""
	} else if id.namespace == "" {
		id.namespace = metav1.NamespaceDefault
	}
	fail := func(err *ManifestError) []item { return []item{{id: id, at: at, err: err.about(id)}} }
	if !slices.Contains(info.apiVersions, head.APIVersion) {
		return fail(at.errorf(ReasonKind, "apiVersion %q is not known for this kind, only %s", head.APIVersion, accepted(info.kind)))
	}
	object := info.object()
	unmarshal := unmarshalStrict
	if kind == CalicoPools {
		unmarshal = unmarshalKnown
	}
	if err := unmarshal(at, raw, object); err != nil {
		return fail(err)
	}
	it := complete(at, id, object)
	return []item{it}
}

// accepted names the apiVersions that objects of a kind may have.
func accepted(kind string) string {
	var all []string
	for _, k := range kindsNamed(kind) {
		all = append(all, kindInfo[k].apiVersions...)
	}
	return strings.Join(all, ", ")
}

// decodeList decodes the items of a list of any kind or of one kind.
func decodeList(at where, raw []byte, meta metav1.TypeMeta, element string) []item {
	var def metav1.TypeMeta
	if element != "" {
		def = metav1.TypeMeta{Kind: element, APIVersion: meta.APIVersion}
		if _, ok := kindOf(def); !ok {
			return nil
		}
	}
	var list struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := unmarshalStrict(at, raw, &list); err != nil {
		err.Kind = meta.Kind
		return []item{{at: at, err: err}}
	}
	var items []item
	for i, r := range list.Items {
		for _, it := range decodeObject(at, r, def) {
			if it.err != nil && it.err.Field != "" {
				it.err.Field = fmt.Sprintf("items[%d].%s", i, it.err.Field)
			}
			items = append(items, it)
		}
	}
	return items
}

// unmarshalStrict is the API server's way with fieldValidation=Strict.
func unmarshalStrict(at where, raw []byte, into any) *ManifestError {
	strict, err := kjson.UnmarshalStrict(raw, into)
	if err != nil {
		return fieldError(at, err)
	}
	if len(strict) == 0 {
		return nil
	}
	e := at.errorf(ReasonField, "%w", errors.Join(strict...))
	var fields, texts []string
	for _, s := range strict {
		texts = append(texts, s.Error())
		var f kjson.FieldError
		if errors.As(s, &f) {
			fields = append(fields, f.FieldPath())
		}
	}
	e.Field = strings.Join(fields, ", ")
	e.Err = errors.New(strings.Join(texts, ", "))
	return e
}

// unmarshalKnown passes over fields that are not known. There are many of them in
// Calico's objects, of which we have but a few.
func unmarshalKnown(at where, raw []byte, into any) *ManifestError {
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, into); err != nil {
		return fieldError(at, err)
	}
	return nil
}

// fieldError is the error of a field of the wrong type.
func fieldError(at where, err error) *ManifestError {
	e := at.errorf(ReasonField, "%w", err)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		e.Field = wrong.Field
		e.Err = fmt.Errorf("%s: %s where %s is wanted", wrong.Field, wrong.Value, jsonType(wrong.Type))
	}
	return e
}

// jsonType returns what JSON calls a Go type.
func jsonType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map, reflect.Pointer, reflect.Interface:
		return "an object"
	default:
		return "a number"
	}
}

// complete adds what the API server would have added and refuses what it would
// have refused.
func complete(at where, id identity, object apiObject) item {
	info := kindInfo[id.kind]
	if info.namespaced {
		object.SetNamespace(id.namespace)
	}
	if object.GetUID() == "" {
		object.SetUID(types.UID(uuid.NewSHA1(uuid.NameSpaceURL,
			[]byte(info.apiVersions[0]+"/"+info.resource+"/"+id.namespace+"/"+id.name)).String()))
	}
	if id.kind == Namespaces {
		labels := object.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[corev1.LabelMetadataName] = id.name
		object.SetLabels(labels)
	}

	identityErrs, errs := validate(id, object)
	if len(identityErrs)+len(errs) == 0 {
		return item{id: id, at: at, object: object}
	}
	e := invalid(at, append(identityErrs, errs...)).about(id)
	if len(identityErrs) > 0 {
		// An object whose name is no name has no identity either.
		e.id = identity{}
		return item{at: at, err: e}
	}
	if id.kind == NetworkPolicies {
		return item{id: id, at: at, object: object, err: e}
	}
	return item{id: id, at: at, err: e}
}

func invalid(at where, errs field.ErrorList) *ManifestError {
	var fields []string
	for _, err := range errs {
		fields = append(fields, err.Field)
	}
	e := at.errorf(ReasonInvalid, "%w", wrong(errs))
	e.Field = strings.Join(fields, ", ")
	return e
}

// validate returns what is wrong with the name of an object and with the rest
// of it.
func validate(id identity, object apiObject) (identityErrs, errs field.ErrorList) {
	info := kindInfo[id.kind]
	path := field.NewPath("metadata")
	for _, err := range validation.ValidateObjectMetaAccessor(object, info.namespaced, info.validName, path) {
		switch err.Field {
		case "metadata.name", "metadata.namespace":
			identityErrs = append(identityErrs, err)
		default:
			errs = append(errs, err)
		}
	}
	switch o := object.(type) {
	case *networkingv1.NetworkPolicy:
		errs = append(errs, policy.Validate(o)...)
	case *v1alpha1.IPPool:
		errs = append(errs, validatePool(o)...)
	case *calico.IPPool:
		errs = append(errs, validateCalicoPool(o)...)
	case *networkingv1.ServiceCIDR:
		errs = append(errs, validateServices(o)...)
	case *corev1.Pod:
		path := field.NewPath("status")
		errs = append(errs, validateAddr(path.Child("podIP"), o.Status.PodIP)...)
		for i, ip := range o.Status.PodIPs {
			errs = append(errs, validateAddr(path.Child("podIPs").Index(i).Child("ip"), ip.IP)...)
		}
	case *corev1.Node:
		path := field.NewPath("spec")
		errs = append(errs, validatePrefix(path.Child("podCIDR"), o.Spec.PodCIDR)...)
		for i, cidr := range o.Spec.PodCIDRs {
			errs = append(errs, validatePrefix(path.Child("podCIDRs").Index(i), cidr)...)
		}
	}
	return identityErrs, errs
}

func validateAddr(path *field.Path, s string) field.ErrorList {
	if s == "" {
		return nil
	}
	if _, err := netip.ParseAddr(s); err != nil {
		return field.ErrorList{field.Invalid(path, s, "must be an IP address")}
	}
	return nil
}

func validatePrefix(path *field.Path, s string) field.ErrorList {
	if s == "" {
		return nil
	}
	if _, err := netip.ParsePrefix(s); err != nil {
		return field.ErrorList{field.Invalid(path, s, "must be a CIDR")}
	}
	return nil
}
