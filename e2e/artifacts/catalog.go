package artifacts

import (
	"os"
	"path"
	"path/filepath"
)

// recipe says how one artifact is made. All of it goes into the key.
type recipe struct {
	// Name is the artifact's, and that of its image if it is one. None begins
	// with another one and a hyphen: names begin those of files.
	Name, Version string

	Go    []goBuild
	C     *cBuild
	Tree  *treeBuild
	Image *imageBuild
}

// goBuild is a run of the Go tool in one of the nested modules.
type goBuild struct {
	Module   string   // its directory
	Packages []string // those that begin with . are our own
	Out      string   // the program's name; empty for several, which have the packages'
	Test     bool     // a test binary
	Set      []string // variables for the linker, package.name=value
	Tags     string
	// Static has cgo, for a program that is linked with libseccomp.
	Static bool
	// Source is a module whose main package is built from a copy, by the
	// module's own go.mod, with the packages Empty made empty.
	Source string
	Empty  []string
}

// treeBuild is a program of this repository, from the working tree as it is.
type treeBuild struct {
	Module  string // its directory, from the root of the repository
	Package string
	Stamp   string // the variable that gets git's name for the commit
	// Shipped is true if deploy/cmd/image makes the image. It compiles the
	// program itself, by the same flags.
	Shipped bool
}

// cBuild is one C file of a module, and the program that it makes.
type cBuild struct {
	Module, Path, File string
	Out                string
	Flags              []string
}

// imageBuild is an image of what was built.
type imageBuild struct {
	Reference       string
	Entrypoint, Cmd []string
	// Files are by their names in the image.
	Files map[string]imageFile
}

// imageFile is a program that was built, a file of a module, or a directory
// with this mode.
type imageFile struct {
	Built string
	// Module is the directory of the nested module that requires Path, the
	// module with the File.
	Module, Path, File string
	Mode               os.FileMode
}

// binaries are the names of the programs that stay.
func (r recipe) binaries() []string {
	if r.Image != nil {
		return nil
	}
	var names []string
	for _, g := range r.Go {
		names = append(names, g.outputs()...)
	}
	return names
}

// files are what a complete artifact has.
func (r recipe) files() []string {
	if r.Image != nil {
		return []string{r.archive()}
	}
	var files []string
	for _, name := range r.binaries() {
		files = append(files, filepath.Join("bin", name))
	}
	return files
}

func (r recipe) archive() string { return r.Name + ".tar" }

func (g goBuild) outputs() []string {
	if g.Out != "" {
		return []string{g.Out}
	}
	var names []string
	for _, p := range g.Packages {
		names = append(names, path.Base(p))
	}
	return names
}

func names(recipes []recipe) []string {
	var names []string
	for _, r := range recipes {
		names = append(names, r.Name)
	}
	return names
}
