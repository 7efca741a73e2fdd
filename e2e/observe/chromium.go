package observe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Shoot has headless Chromium make a picture of each dashboard of a page that was
// written to a file. It returns the pictures, beside that file.
func (p *Page) Shoot(ctx context.Context, file string) ([]string, error) {
	profile, err := os.MkdirTemp("", "chromium-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(profile)
	var pictures []string
	for _, b := range p.Boards {
		picture := filepath.Join(filepath.Dir(file), b.File+".png")
		if err := os.RemoveAll(picture); err != nil {
			return nil, err
		}
		err := runIn(ctx, filepath.Dir(file), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--user-data-dir="+profile,
			fmt.Sprintf("--window-size=%d,%d", PageWidth, b.High+headHigh), "--screenshot="+picture, "file://"+file+"#"+b.File)
		if err != nil {
			return nil, err
		}
		// It exits with 0 whatever happens.
		if _, err := os.Stat(picture); err != nil {
			return nil, fmt.Errorf("chromium made no picture: %w", err)
		}
		pictures = append(pictures, picture)
	}
	return pictures, nil
}

// headHigh is the height of what is above the panels of a dashboard.
const headHigh = 80
