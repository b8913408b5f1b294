package pixyproxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	pb "example.com/client/pixyproxypb"
)

// Download streams a picture into a file, and returns how many bytes came. It goes on where the file ends, also after
// the connection was lost on the way. A file with other bytes than the picture's is an error.
func Download(ctx context.Context, images pb.ImageServiceClient, guid, path string) (int64, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	start, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	info, err := Repeat(ctx, func() (*pb.ContentInfo, error) { return appendRest(ctx, images, guid, file) })
	if err != nil {
		return 0, err
	}
	end, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	return end - start, check(file, info)
}

func appendRest(ctx context.Context, images pb.ImageServiceClient, guid string, file *os.File) (*pb.ContentInfo, error) {
	offset, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	stream, err := images.GetImageContent(ctx, &pb.GetImageContentRequest{Guid: guid, ReadOffset: offset})
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			return first.Info, nil
		}
		if err != nil {
			return nil, err
		}
		if _, err := file.Write(message.Data); err != nil {
			return nil, err
		}
	}
}

func check(file *os.File, info *pb.ContentInfo) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return err
	}
	if found := hex.EncodeToString(hash.Sum(nil)); found != info.Sha256 {
		return fmt.Errorf("%s has the SHA-256 %s, not the picture's %s", file.Name(), found, info.Sha256)
	}
	return nil
}
