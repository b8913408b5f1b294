package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"google.golang.org/grpc/status"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

// calls makes each call once, and reports with which codes they ended: what is sent again, gRPC itself sent again.
func calls(ctx context.Context) (any, error) {
	connection, images := connectAsUser()
	defer connection.Close()
	guid := uuid.NewString()
	ended := map[string]int{}
	end := func(method string, err error) { ended[method] = int(status.Code(err)) }

	_, err := images.CreateImage(ctx, &pb.CreateImageRequest{Prompt: "a lighthouse"})
	end("CreateImage", err)
	_, err = images.GetImage(ctx, &pb.GetImageRequest{Guid: guid})
	end("GetImage", err)
	_, err = images.ListImages(ctx, &pb.ListImagesRequest{})
	end("ListImages", err)
	stream, err := images.GetImageContent(ctx, &pb.GetImageContentRequest{Guid: guid})
	for err == nil {
		_, err = stream.Recv()
	}
	if err == io.EOF {
		err = nil
	}
	end("GetImageContent", err)
	_, err = images.UpdateImage(ctx, &pb.UpdateImageRequest{Guid: guid, Tags: []string{"sea"}})
	end("UpdateImage", err)
	_, err = images.DeleteImage(ctx, &pb.DeleteImageRequest{Guid: guid})
	end("DeleteImage", err)
	return ended, nil
}

// repeats creates and downloads a picture at a server that refuses once what it then does.
func repeats(ctx context.Context) (any, error) {
	connection, images := connectAsUser()
	defer connection.Close()
	image, _, err := create(ctx, images, "again")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(os.Args[2], "picture.png")
	received, err := pixyproxy.Download(ctx, images, image.Guid, path)
	return map[string]any{"guid": image.Guid, "path": path, "received": received}, err
}
