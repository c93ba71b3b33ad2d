"""The servicer that the pages of docs/ call."""

from . import library_pb2, library_pb2_grpc
from .models import Book


class Library(library_pb2_grpc.LibraryServicer):
    def GetBook(self, request, context):
        book = Book.objects.get(pk=request.id)
        return library_pb2.Book(id=book.pk, title=book.title)


def grpc_hook(server):
    library_pb2_grpc.add_LibraryServicer_to_server(Library(), server)
