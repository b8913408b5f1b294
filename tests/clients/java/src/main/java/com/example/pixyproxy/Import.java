package com.example.pixyproxy;

import com.google.protobuf.ByteString;
import com.pixyproxy.v1.ImageDetail;
import com.pixyproxy.v1.ImageServiceGrpc.ImageServiceStub;
import com.pixyproxy.v1.ImportImageInfo;
import com.pixyproxy.v1.ImportImageRequest;
import com.pixyproxy.v1.ImportImageResponse;
import io.grpc.Deadline;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;

/** Sends pictures into the store. */
public final class Import {
  private static final int CHUNK_SIZE = 64 * 1024;

  private Import() {}

  /**
   * Sends a picture of the caller's own into the store, and returns its detail.
   *
   * <p>As the info has a request_id, it is sent again from its start where that may help.
   */
  public static ImageDetail importImage(ImageServiceStub images, ImportImageInfo info, Path path, Deadline deadline)
      throws InterruptedException {
    return Refusal.repeat(deadline, () -> sendOnce(images.withDeadline(deadline), info, path));
  }

  private static ImageDetail sendOnce(ImageServiceStub images, ImportImageInfo info, Path path) {
    try (var content = Files.newInputStream(path)) {
      var sender = new Sender(info, content);
      images.importImage(sender);
      return sender.image.join();
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    } catch (CompletionException error) {
      if (error.getCause() instanceof StatusRuntimeException refused) {
        throw refused;
      }
      throw error;
    }
  }

  /** Sends the messages as fast as the server takes them. */
  private static final class Sender implements ClientResponseObserver<ImportImageRequest, ImportImageResponse> {
    private final CompletableFuture<ImageDetail> image = new CompletableFuture<>();
    private final ImportImageInfo info;
    private final InputStream content;
    private boolean isBegun;
    private boolean isEnded;

    Sender(ImportImageInfo info, InputStream content) {
      this.info = info;
      this.content = content;
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<ImportImageRequest> call) {
      call.setOnReadyHandler(() -> sendTo(call));
    }

    private void sendTo(ClientCallStreamObserver<ImportImageRequest> call) {
      try {
        while (call.isReady() && !isEnded) {
          if (!isBegun) {
            isBegun = true;
            call.onNext(ImportImageRequest.newBuilder().setInfo(info).build());
            continue;
          }
          var data = content.readNBytes(CHUNK_SIZE);
          if (data.length == 0) {
            isEnded = true;
            call.onCompleted();
          } else {
            call.onNext(ImportImageRequest.newBuilder().setData(ByteString.copyFrom(data)).build());
          }
        }
      } catch (IOException error) {
        isEnded = true;
        call.cancel("The file cannot be read.", error);
      }
    }

    @Override
    public void onNext(ImportImageResponse response) {
      image.complete(response.getImage());
    }

    @Override
    public void onError(Throwable error) {
      image.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {}
  }
}
