# A client that speaks to PostgreSQL itself, since psql binds no parameters in binary
# format, and no client of ours would leave a statement unanswered on purpose.
#
#   my $wire = RegPilot::Wire->new($node, 'regpilot');
#   my $answer = $wire->call('SELECT $1::int + $2', binary(pack 'N', 1), 2);
#   is($answer->{rows}[0][0], 3);
#
# Protocol 3.0 over a Unix socket, without authentication: "Frontend/Backend
# Protocol" in PostgreSQL's manual.

package RegPilot::Wire;

use strict;
use warnings;

use Exporter 'import';
use IO::Socket::UNIX;

our @EXPORT = qw(binary);

# A parameter in binary format; others are text.
sub binary { return \$_[0] }

# new(node, database, user)
sub new
{
	my ($class, $node, $database, $user) = @_;
	my $self = bless {
		socket => IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) // die "connect: $!",
	}, $class;
	my $startup = pack('N (Z*)*', 3 << 16, user => $user // scalar getpwuid($>), database => $database, '');
	$self->write(pack('N', 4 + length $startup) . $startup);
	my $error = $self->receive->{error};
	die "connection refused: $error->{M}" if $error;
	return $self;
}

sub write
{
	my ($self, $bytes) = @_;
	print { $self->{socket} } $bytes or die "write: $!";
	$self->{socket}->flush;
}

# undef at the end of the session
sub read
{
	my ($self, $length) = @_;
	my $bytes = '';
	while (length $bytes < $length)
	{
		sysread($self->{socket}, $bytes, $length - length $bytes, length $bytes) or return;
	}
	return $bytes;
}

sub message { return $_[0] . pack('N', 4 + length $_[1]) . $_[1] }

# send(statement, parameter...): by the extended protocol; receive() has the answer.
sub send
{
	my ($self, $statement, @parameters) = @_;
	my $bind = pack('Z* Z*', '', '') . pack('n/n*', map { ref ? 1 : 0 } @parameters);
	$bind .= pack('n', scalar @parameters);
	$bind .= defined ? pack('N/a*', ref ? $$_ : $_) : pack('N', 0xFFFFFFFF) foreach @parameters;
	$self->write(message('P', pack('Z* Z* n', '', $statement, 0))
		  . message('B', $bind . pack('n', 0))
		  . message('E', pack('Z* N', '', 0))
		  . message('S', ''));
}

# What came up to the next ReadyForQuery, or the end of the session: { rows => [ [value, ...], ... ] }, and
# error => its fields by their letters, if there was one.
sub receive
{
	my ($self) = @_;
	my %answer = (rows => []);
	while (1)
	{
		my ($type, $length) = unpack 'a N', $self->read(5) // return \%answer;
		my $body = $self->read($length - 4);
		return \%answer if $type eq 'Z';
		$answer{error} = { map { /^(.)(.*)/s } split /\0/, $body } if $type eq 'E';
		next if $type ne 'D';

		my $values = unpack 'n', $body;
		my $at = 2;
		my @row;
		foreach (1 .. $values)
		{
			my $size = unpack 'l>', substr $body, $at, 4;
			push @row, $size < 0 ? undef : substr $body, $at + 4, $size;
			$at += 4 + ($size < 0 ? 0 : $size);
		}
		push @{ $answer{rows} }, \@row;
	}
}

sub call
{
	my ($self, @arguments) = @_;
	$self->send(@arguments);
	return $self->receive;
}

1;
