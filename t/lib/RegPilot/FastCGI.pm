# A client that speaks FastCGI to the responder itself, and whatever else it is told to.
#
#   my $connection = RegPilot::FastCGI->new($site);
#   $connection->send(request(1, { REQUEST_METHOD => 'GET', REQUEST_URI => '/healthz' }));
#   my $answer = $connection->answer;
#   is($answer->{status}, 200);
#
# Section numbers are those of the FastCGI Specification 1.0.

package RegPilot::FastCGI;

use strict;
use warnings;

use Exporter 'import';
use IO::Poll qw(POLLHUP);
use IO::Select;
use IO::Socket::UNIX;
use JSON::PP ();
use Socket qw(SHUT_WR);
use Time::HiRes qw(time);

our @EXPORT = qw(
  BEGIN_REQUEST ABORT_REQUEST END_REQUEST PARAMS STDIN_ STDOUT_ DATA GET_VALUES GET_VALUES_RESULT
  UNKNOWN_TYPE RESPONDER AUTHORIZER FILTER KEEP REQUEST_COMPLETE CANT_MPX_CONN UNKNOWN_ROLE
  record begin pair params request
);

use constant {
	BEGIN_REQUEST => 1,
	ABORT_REQUEST => 2,
	END_REQUEST => 3,
	PARAMS => 4,
	STDIN_ => 5,
	STDOUT_ => 6,
	DATA => 8,
	GET_VALUES => 9,
	GET_VALUES_RESULT => 10,
	UNKNOWN_TYPE => 11,

	RESPONDER => 1,
	AUTHORIZER => 2,
	FILTER => 3,
	KEEP => 1,

	REQUEST_COMPLETE => 0,
	CANT_MPX_CONN => 1,
	UNKNOWN_ROLE => 3,
};

my $json = JSON::PP->new->utf8->allow_nonref;

# Seconds that an answer may take.
my $patience = 60;

# record(type, request id, content, padding bytes, length that it claims)
sub record
{
	my ($type, $id, $content, $padding, $claimed) = @_;
	$content //= '';
	$padding //= 0;
	return pack('CCnnCx', 1, $type, $id, $claimed // length $content, $padding) . $content . "\xaa" x $padding;
}

sub begin
{
	my ($id, $role, $flags) = @_;
	return record(BEGIN_REQUEST, $id, pack('nCx5', $role // RESPONDER, $flags // 0));
}

# A name and its value (3.4).
sub pair
{
	my ($name, $value) = @_;
	return join '', (map { length > 127 ? pack('N', length($_) | 1 << 31) : pack('C', length) } $name, $value), $name, $value;
}

sub params
{
	my ($params) = @_;
	return join '', map { pair($_, $params->{$_}) } sort keys %$params;
}

# A stream of bytes in records, and its end.
sub stream
{
	my ($type, $id, $bytes, $padding) = @_;
	return join '', map { record($type, $id, $_, $padding) } unpack('(a65535)*', $bytes), '';
}

# request(id, params, body, role =>, flags =>, padding =>)
sub request
{
	my ($id, $params, $body, %option) = @_;
	my $padding = $option{padding};
	return
	  record(BEGIN_REQUEST, $id, pack('nCx5', $option{role} // RESPONDER, $option{flags} // 0), $padding)
	  . stream(PARAMS, $id, ref $params ? params($params) : $params, $padding)
	  . stream(STDIN_, $id, $body // '', $padding);
}

sub new
{
	my ($class, $site) = @_;
	my $socket = IO::Socket::UNIX->new(Peer => $site->responder_socket) // die "connect: $!";
	return bless { socket => $socket, bytes => '' }, $class;
}

# Sends it all; false when the responder does not take it.
sub send
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';
	my $sent = 0;
	while ($sent < length $bytes)
	{
		$sent += syswrite($self->{socket}, $bytes, length($bytes) - $sent, $sent) // return 0;
	}
	return 1;
}

# We send no more, or are not there any more.
sub end { return shutdown($_[0]{socket}, SHUT_WR) }
sub close { return CORE::close($_[0]{socket}) }

# Whether the peer has closed the connection, whatever is still to be read from it.
sub is_closed
{
	my ($self) = @_;
	my $poll = IO::Poll->new;
	$poll->mask($self->{socket} => POLLHUP);
	$poll->poll(0);
	return $poll->events($self->{socket}) & POLLHUP;
}

# The next record: { type, id, content }; nothing when the responder has closed the connection.
sub receive
{
	my ($self) = @_;
	my $end = time + $patience;
	while (1)
	{
		my ($version, $type, $id, $length, $padding) = unpack 'CCnnC', $self->{bytes};
		if (length $self->{bytes} >= 8 && length $self->{bytes} >= 8 + $length + $padding)
		{
			die "a record of version $version" if $version != 1;
			my $content = substr $self->{bytes}, 8, $length;
			substr $self->{bytes}, 0, 8 + $length + $padding, '';
			return { type => $type, id => $id, content => $content };
		}
		IO::Select->new($self->{socket})->can_read($end - time) or die 'the responder sends nothing';
		if (!sysread $self->{socket}, $self->{bytes}, 65536, length $self->{bytes})
		{
			die 'the responder has closed the connection within a record' if $self->{bytes} ne '';
			return;
		}
	}
}

# All records until the connection is closed.
sub rest
{
	my ($self) = @_;
	my @records;
	while (my $record = $self->receive)
	{
		push @records, $record;
	}
	return @records;
}

# The next answer: { id, status, headers, body, json, ended => protocol status };
# nothing when the connection is closed before its end.
sub answer
{
	my ($self) = @_;
	my $output = '';
	while (my $record = $self->receive)
	{
		$output .= $record->{content} if $record->{type} == STDOUT_;
		next if $record->{type} != END_REQUEST;

		my ($head, $body) = split /\r\n\r\n/, $output, 2;
		my %header = map { my ($name, $value) = split /:\s*/, $_, 2; (lc $name => $value) } split /\r\n/, $head // '';
		return {
			id => $record->{id},
			status => ($header{status} // '') =~ /^(\d+)/ ? $1 : 0,
			headers => \%header,
			body => $body // '',
			json => scalar eval { $json->decode($body) },
			ended => unpack('x4C', $record->{content}),
		};
	}
	return;
}

1;
